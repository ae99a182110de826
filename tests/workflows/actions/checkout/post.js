require(`${process.env.STAND_INS}/start.js`)("checkout", "post.py");
