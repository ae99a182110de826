require(`${process.env.STAND_INS}/start.js`)("cosign-installer");
