// Starts a stand-in's Python with the step's inputs; post steps pass the name of another file.
"use strict";
const { spawnSync } = require("child_process");

module.exports = (name, file = "main.py") => {
  const program = `${process.env.STAND_INS}/${name}/${file}`;
  const ended = spawnSync(process.env.STAND_INS_PYTHON, [program], {
    stdio: "inherit",
    env: { ...process.env, PYTHONPATH: process.env.STAND_INS },
  });
  process.exitCode = ended.status === null ? 1 : ended.status;
};
