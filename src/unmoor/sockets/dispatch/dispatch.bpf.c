// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The dispatch program: which socket takes a packet for (protocol, address, port).
 *
 * It runs at every look-up of a listening TCP socket or an unconnected UDP socket in the network
 * namespace, before the kernel's own (Linux >= 5.9, BPF_PROG_TYPE_SK_LOOKUP):
 *
 *   ports[protocol][port] -> root of a trie -> leaf (a prefix) -> service -> socket
 *
 * `ports`, `nodes` and `leaves` are the dispatch table: filled by the loader (table.py), then
 * frozen. `sockets` and the counters are shared by all generations of the table. Not ours: SK_PASS
 * after one array access. Bound, but no socket: SK_DROP and a miss.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The sizes below are known to layout.py as well. */
#define MAX_SERVICES 2048
/* Sockets of one service, protocol and family: the first that is alive takes the packet. */
#define SOCKET_SLOTS 8
#define MAX_GROUPS (MAX_SERVICES * 4)
/* The trie's depth and the number of nested prefixes; table.py refuses to exceed them. */
#define MAX_DEPTH 28
#define MAX_NESTING 64
/* Addresses with a counter of their own, in chunks that user space reads in one call each. */
#define ADDRESS_CHUNK 1024
#define ADDRESS_CHUNKS 128

/* IPv6 addresses with a counter of their own: sets of a hash table that is never longer than this.
 */
#define SEEN_SETS 4096
#define SEEN_SET_BITS 12
#define SEEN_WAYS 4

#define FAMILY_IPV6 10

/* The roots of the tries for a port; 0 where nothing is bound. */
struct port {
	__u32 ipv4;
	__u32 ipv6;
};

/* A node of a level-compressed trie (Nilsson and Karlsson, 1999): the `bits` bits at `pos` of the
 * address select one of 2^bits nodes from `first` on. With no bits it is the end: `first` is a
 * leaf.
 */
struct node {
	__u32 first;
	__u8 pos;
	__u8 bits;
	__u16 zero;
};

/* A prefix that is bound, left-aligned in 128 bits, and the service that it is bound to.
 * `parent` is the leaf to try next when this one does not match; 0 ends the chain.
 */
struct leaf {
	__u64 high;
	__u64 low;
	__u64 mask_high;
	__u64 mask_low;
	__u32 parent;
	__u32 service;
	/* Interface that the packet must have come in by; 0 for any. */
	__u32 ifindex;
	/* Of the prefix; compared between the port's trie and that of 'any port'. */
	__u32 length;
	/* Added to an IPv4 address it gives the number of the address's counter. */
	__u64 address_base;
	__u64 zero;
};

struct counters {
	__u64 lookups;
	__u64 misses;
	__u64 wrong_family;   /* EAFNOSUPPORT */
	__u64 wrong_protocol; /* EPROTOTYPE */
	__u64 wrong_state;    /* ESOCKTNOSUPPORT */
	/* Not an error: a program attached before this one had chosen a socket. */
	__u64 replaced;
	__u64 other_error;
	__u64 zero;
};

/* An IPv6 address and how often it was looked up; a set of them has the addresses of one hash. */
struct seen {
	__u64 high;
	__u64 low;
	__u64 count;
};

struct seen_set {
	struct seen ways[SEEN_WAYS];
};

/* What `explain` is asked beside the packet, and what it found. */
struct answer {
	__u32 bound;
	__u32 service;
	__u32 length;
	__u32 ifindex;
	/* 0: a socket takes it; 1: there is none (a miss); below 0: bpf_sk_assign's error. */
	__s32 error;
	/* Asked by user space: BPF_PROG_TEST_RUN takes no interface in the context. */
	__u32 asked_ifindex;
};

/* An address that `prove` is asked, and the service that must take it, plus one; 0 for none. */
struct question {
	__u64 high;
	__u64 low;
	__u64 expected;
};

/* Questions from `next` up to `end` for one port, and what came out: how many were answered
 * wrongly, the first of them, and the service that it found, plus one.
 */
struct batch {
	__u32 port;
	__u32 is_ipv6;
	__u32 ifindex;
	__u32 next;
	__u32 end;
	__u32 wrong;
	__u32 first_wrong;
	__u32 found;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * 65536);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct leaf);
} leaves SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, MAX_GROUPS *SOCKET_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_GROUPS);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ADDRESS_CHUNKS);
	__type(key, __u32);
	__uint(value_size, ADDRESS_CHUNK * sizeof(__u64));
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SEEN_SETS);
	__type(key, __u32);
	__type(value, struct seen_set);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct question);
} questions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct batch);
} batches SEC(".maps");

/* Roots of the tries of the bindings to any port, set before the program is loaded. The verifier
 * knows the values, so that where they are 0 nothing of the code below is left.
 */
const volatile __u32 any_tcp_ipv4 = 0;
const volatile __u32 any_tcp_ipv6 = 0;
const volatile __u32 any_udp_ipv4 = 0;
const volatile __u32 any_udp_ipv6 = 0;

struct target {
	__u64 high;
	__u64 low;
	__u32 ifindex;
};

/* The leaf with the longest prefix of `root` that matches, or NULL. */
static __always_inline const struct leaf *find(__u32 root, const struct target *target)
{
	__u32 index = root, number = 0;

	for (int depth = 0; depth < MAX_DEPTH; depth++) {
		const struct node *node = bpf_map_lookup_elem(&nodes, &index);
		__u64 word;

		if (!node)
			return NULL;
		if (!node->bits) {
			number = node->first;
			break;
		}
		word = node->pos < 64 ? target->high : target->low;
		index = node->first + (word << (node->pos & 63) >> (64 - node->bits));
	}
	for (int nesting = 0; nesting < MAX_NESTING; nesting++) {
		const struct leaf *leaf;

		if (!number)
			return NULL;
		leaf = bpf_map_lookup_elem(&leaves, &number);
		if (!leaf)
			return NULL;
		if ((target->high & leaf->mask_high) == leaf->high &&
		    (target->low & leaf->mask_low) == leaf->low &&
		    (!leaf->ifindex || leaf->ifindex == target->ifindex))
			return leaf;
		number = leaf->parent;
	}
	return NULL;
}

/* Of a port's own leaf and that of 'any port': the longer prefix, at equal length the port's own.
 */
static __always_inline const struct leaf *choose(const struct leaf *own, const struct leaf *any)
{
	if (!own)
		return any;
	if (any && any->length > own->length)
		return any;
	return own;
}

/* Roots of the tries that hold what is bound at a port; `port` is the port of TCP, 65536 more for
 * UDP. */
struct roots {
	__u32 own;
	__u32 any;
};

static __always_inline struct roots roots_of(__u32 port, int is_ipv6)
{
	struct roots roots = {};
	const struct port *found = bpf_map_lookup_elem(&ports, &port);
	int is_udp = port >> 16;

	if (!found)
		return roots;
	if (is_ipv6) {
		roots.own = found->ipv6;
		roots.any = is_udp ? any_udp_ipv6 : any_tcp_ipv6;
	} else {
		roots.own = found->ipv4;
		roots.any = is_udp ? any_udp_ipv4 : any_tcp_ipv4;
	}
	return roots;
}

/* The binding that takes a packet to this address, or NULL. */
static __always_inline const struct leaf *match(struct roots roots, const struct target *target)
{
	const struct leaf *own = NULL, *any = NULL;

	if (roots.own)
		own = find(roots.own, target);
	if (roots.any)
		any = find(roots.any, target);
	return choose(own, any);
}

static __always_inline void count_address(__u64 number)
{
	__u32 chunk = number / ADDRESS_CHUNK;
	__u64 *counts;

	if (number >= ADDRESS_CHUNKS * ADDRESS_CHUNK)
		return;
	counts = bpf_map_lookup_elem(&addresses, &chunk);
	if (counts)
		counts[number % ADDRESS_CHUNK]++;
}

/* Where all ways of the address's set are taken it wears one of them down, and takes its place when
 * that is at 0: busy addresses stay, those seen once make room for one another.
 */
static __always_inline void count_ipv6(const struct target *target)
{
	__u64 hash = (target->high ^ target->low * 0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd;
	__u32 number = hash >> (64 - SEEN_SET_BITS);
	struct seen_set *set = bpf_map_lookup_elem(&seen, &number);
	struct seen *way;

	if (!set)
		return;
#pragma unroll
	for (int i = 0; i < SEEN_WAYS; i++) {
		way = &set->ways[i];
		if (way->low == target->low && way->high == target->high) {
			way->count++;
			return;
		}
	}
#pragma unroll
	for (int i = 0; i < SEEN_WAYS; i++) {
		way = &set->ways[i];
		if (!way->count)
			goto take;
	}
	way = &set->ways[hash % SEEN_WAYS];
	if (--way->count)
		return;
take:
	way->high = target->high;
	way->low = target->low;
	way->count = 1;
}

static __always_inline void count_error(struct counters *count, long error)
{
	if (error == -EAFNOSUPPORT)
		count->wrong_family++;
	else if (error == -EPROTOTYPE)
		count->wrong_protocol++;
	else if (error == -ESOCKTNOSUPPORT)
		count->wrong_state++;
	else
		count->other_error++;
}

/* Give the packet to the first socket alive in the slots of `group`. Returns 1 where there is none,
 * 0 when it was given, or the error of bpf_sk_assign.
 */
static __always_inline long assign(struct bpf_sk_lookup *ctx, __u32 group, __u64 flags)
{
	__u32 key = group * SOCKET_SLOTS;
	struct bpf_sock *sk = NULL;
	long error;

#pragma unroll
	for (int slot = 0; slot < SOCKET_SLOTS; slot++) {
		sk = bpf_map_lookup_elem(&sockets, &key);
		if (sk)
			break;
		key++;
	}
	if (!sk)
		return 1;
	error = bpf_sk_assign(ctx, sk, flags);
	bpf_sk_release(sk);
	return error;
}

/* Both programs below are this one: `explain` reports what `dispatch` would do and counts nothing.
 *
 * A hit replaces the choice of a program that was attached before (BPF_SK_LOOKUP_F_REPLACE). A miss
 * cannot: the kernel keeps the last socket chosen, whatever a later program returns.
 */
static __always_inline int run(struct bpf_sk_lookup *ctx, int explaining)
{
	__u64 flags = explaining ? BPF_SK_LOOKUP_F_NO_REUSEPORT : BPF_SK_LOOKUP_F_REPLACE;
	__u32 is_udp = ctx->protocol == IPPROTO_UDP;
	__u32 is_ipv6 = ctx->family == FAMILY_IPV6;
	__u32 key = ctx->local_port | is_udp << 16;
	const struct leaf *leaf;
	struct counters *count;
	struct target target = {};
	struct answer *answer = NULL;
	struct roots roots;
	__u32 group, zero = 0;
	int had_socket;
	long error;

	if (explaining) {
		/* A real packet: somebody attached `explain`. It decides nothing. */
		if (ctx->remote_port || ctx->ingress_ifindex)
			return SK_PASS;
		answer = bpf_map_lookup_elem(&answers, &zero);
		if (!answer)
			return SK_DROP;
		answer->bound = 0;
	}
	roots = roots_of(key, is_ipv6);
	if (!roots.own && !roots.any)
		return SK_PASS;

	if (is_ipv6) {
		target.high =
		    (__u64)bpf_ntohl(ctx->local_ip6[0]) << 32 | bpf_ntohl(ctx->local_ip6[1]);
		target.low =
		    (__u64)bpf_ntohl(ctx->local_ip6[2]) << 32 | bpf_ntohl(ctx->local_ip6[3]);
	} else {
		target.high = (__u64)bpf_ntohl(ctx->local_ip4) << 32;
	}
	target.ifindex = answer ? answer->asked_ifindex : ctx->ingress_ifindex;
	leaf = match(roots, &target);
	if (!leaf)
		return SK_PASS;

	group = leaf->service * 4 + is_udp * 2 + is_ipv6;
	had_socket = ctx->sk != NULL;
	error = assign(ctx, group, flags);
	/* Without a socket of its own an IPv4 packet may go to a dual-stack socket. */
	if (error == 1 && !is_ipv6) {
		error = assign(ctx, group + 1, flags);
		if (error == -EAFNOSUPPORT)
			error = 1;
	}
	if (explaining) {
		answer->bound = 1;
		answer->service = leaf->service;
		answer->length = leaf->length;
		answer->ifindex = leaf->ifindex;
		answer->error = error;
		return error ? SK_DROP : SK_PASS;
	}
	count = bpf_map_lookup_elem(&counters, &group);
	if (!count)
		return SK_DROP;
	count->lookups++;
	if (is_ipv6)
		count_ipv6(&target);
	else
		count_address((target.high >> 32) + leaf->address_base);
	if (!error) {
		if (had_socket)
			count->replaced++;
		return SK_PASS;
	}
	if (error == 1)
		count->misses++;
	else
		count_error(count, error);
	return SK_DROP;
}

SEC("sk_lookup")
int dispatch(struct bpf_sk_lookup *ctx)
{
	return run(ctx, 0);
}

SEC("sk_lookup")
int explain(struct bpf_sk_lookup *ctx)
{
	return run(ctx, 1);
}

/* Run once for each question of a batch. It chooses by the lines that `dispatch` is made of, but
 * takes the packet from a map, so that one call from user space proves a whole table.
 */
SEC("sk_lookup")
int prove(struct bpf_sk_lookup *ctx __attribute__((unused)))
{
	struct target target = {};
	struct question *question;
	const struct leaf *leaf;
	struct batch *batch;
	__u32 zero = 0, number, found;

	batch = bpf_map_lookup_elem(&batches, &zero);
	if (!batch || batch->next >= batch->end)
		return SK_PASS;
	number = batch->next++;
	question = bpf_map_lookup_elem(&questions, &number);
	if (!question)
		return SK_PASS;
	target.high = question->high;
	target.low = question->low;
	target.ifindex = batch->ifindex;
	leaf = match(roots_of(batch->port, batch->is_ipv6), &target);
	found = leaf ? leaf->service + 1 : 0;
	if (found != question->expected && !batch->wrong++) {
		batch->first_wrong = number;
		batch->found = found;
	}
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
