"""The checkpoint store: objects in a directory or S3, promotion to a channel, pulls and signatures."""
