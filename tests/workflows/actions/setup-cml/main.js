require(`${process.env.STAND_INS}/start.js`)("setup-cml");
