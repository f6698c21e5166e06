"""The archive on Amazon Athena: its tables in the Glue catalogue, and queries."""
