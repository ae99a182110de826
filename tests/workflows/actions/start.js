// Starts a stand-in's Python with the step's inputs; post steps pass the name of another file.
"use strict";
const { spawnSync } = require("child_process");

module.exports = (name, file = "main.py") => {
  if (process.env.STAND_INS_MISSING.split(" ").includes(name)) {
    console.log(`::error::${name}: Unexpected HTTP response: 503`);
    process.exit(1);
  }
  const program = `${process.env.STAND_INS}/${name}/${file}`;
  const ended = spawnSync(process.env.STAND_INS_PYTHON, [program], {
    stdio: "inherit",
    env: { ...process.env, PYTHONPATH: process.env.STAND_INS },
  });
  process.exitCode = ended.status === null ? 1 : ended.status;
};
