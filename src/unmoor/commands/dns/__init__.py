"""`unmoor dns`: the commands of the DNS half."""
