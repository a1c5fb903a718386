"""A client of etcd: the calls that the clustered journal makes, no more."""
