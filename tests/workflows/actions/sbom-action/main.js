require(`${process.env.STAND_INS}/start.js`)("sbom-action");
