"""Says whom it would ask for credentials, and that nobody answers."""

from stand_in import fail, required

fail(f"no cloud gives credentials here for {required('client-id')}")
