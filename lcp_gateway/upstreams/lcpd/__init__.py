"""Lightning peers, bought from through lcpd-grpcd over gRPC."""
