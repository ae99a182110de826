"""What this project raises: one line that states the value, the rule and the remedy.

UserError
├── ParamsError     params.yaml cannot be read as written
├── SourceError     a source cannot be read
├── ContractError   a batch of data breaks its contract
├── ExportError     the fitted model cannot be served as ONNX
├── ReadOnlyError   the storage lets this machine read and not write (exit code 4)
├── TrackingError   the experiment tracker cannot be written
└── RejectedRowsError  rows of a file broke the model's contract; the others were scored (exit code 3)
"""

from __future__ import annotations


class UserError(Exception):
    """Something the reader of the message can mend; `ml` prints it and exits with its code."""

    code = 1


class ParamsError(UserError):
    """params.yaml holds an unknown key, a wrong type or a value outside its rule."""


class SourceError(UserError):
    """A source is missing, truncated or not in the format its name promises."""


class ContractError(UserError):
    """A batch breaks its contract; nothing of it was written."""


class ExportError(UserError):
    """A step has no faithful ONNX form."""


class ReadOnlyError(UserError):
    """The storage lets this machine read and not write, as it does the checks of a fork."""

    code = 4


class TrackingError(UserError):
    """The MLflow store cannot be written; the model file is kept."""


class RejectedRowsError(UserError):
    """Rows of a file broke the model's contract; the others were scored."""

    code = 3
