require(`${process.env.STAND_INS}/start.js`)("create-github-app-token");
