"""`meld download`: downloads, verifies and unpacks MELD.Raw, or links to an existing copy."""
