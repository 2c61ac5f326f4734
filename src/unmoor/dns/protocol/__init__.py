"""Formats that the DNS RFCs define: names, messages, EDNS, cookies, client subnet, TSIG, SVCB."""
