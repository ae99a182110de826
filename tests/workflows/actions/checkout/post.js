// Without a kept token there is nothing to take out.
if (process.env["INPUT_PERSIST-CREDENTIALS"] !== "false") require(`${process.env.STAND_INS}/start.js`)("checkout", "post.py");
