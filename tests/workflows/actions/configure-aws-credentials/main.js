require(`${process.env.STAND_INS}/start.js`)("configure-aws-credentials");
