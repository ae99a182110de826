// An entry that was made from the prepared environment is not kept.
if (process.env.STATE_KEY) require(`${process.env.STAND_INS}/start.js`)("cache", "post.py");
