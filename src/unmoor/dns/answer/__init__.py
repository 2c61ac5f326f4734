"""From a query to a reply: snapshot, fast path, resolver, rate limit."""
