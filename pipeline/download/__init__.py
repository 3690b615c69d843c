"""MELD.Raw, fetched, verified and unpacked; or a copy that is there already, used in place."""
