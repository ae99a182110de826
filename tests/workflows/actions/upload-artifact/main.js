require(`${process.env.STAND_INS}/start.js`)("upload-artifact");
