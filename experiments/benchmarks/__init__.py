"""One file a measured claim."""
