// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The dispatch program chooses the socket for a packet by (protocol, address, port).
 *
 * It runs before each of the kernel's look-ups of a listening TCP socket or an unconnected UDP
 * socket in its network namespace (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9):
 *
 *   ports[protocol][port] -> root of a trie -> leaf (a prefix) -> service -> socket
 *
 * A trie of one prefix is that prefix's leaf.
 *
 * `ports`, `nodes` and `leaves` are the dispatch table: the loader fills them (table.py) and
 * freezes them. All generations of the table share `sockets` and the counters. For a port that is
 * not bound the result is SK_PASS after one array access; for a binding without a socket, SK_DROP
 * and a miss.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <linux/stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* layout.py has the same sizes. */
#define MAX_SERVICES 2048
/* Sockets of one service, protocol and family; the first one that can take the packet gets it. */
#define SOCKET_SLOTS 8
#define MAX_GROUPS (MAX_SERVICES * 4)
/* A root with this bit is the number of a leaf, for a trie without inner nodes. */
#define ROOT_IS_LEAF (1u << 31)
/* Of each root of a protocol and family that has bindings to any port, also where the rest is 0. */
#define ROOT_AND_ANY (1u << 30)
/* Maximum depth of a trie, and of nested prefixes; table.py enforces both. */
#define MAX_DEPTH 28
#define MAX_NESTING 64
/* Counters of IPv4 addresses, in chunks; user space reads a chunk in one call. */
#define ADDRESS_CHUNK 1024
#define ADDRESS_CHUNKS 128

/* Counters of IPv6 addresses: a set-associative table of fixed size. */
#define SEEN_SETS 4096
#define SEEN_SET_BITS 12
#define SEEN_WAYS 4

#define FAMILY_IPV6 10

/* The slots of a group other than the first, by bit. */
#define OTHER_SLOTS ((1u << SOCKET_SLOTS) - 2)
/* Beside the errors of bpf_sk_assign. */
#define NO_SOCKET 1

/* The roots of the tries for a port: a node, or a leaf with ROOT_IS_LEAF; 0: nothing is bound. */
struct port {
	__u32 ipv4;
	__u32 ipv6;
};

/* A node of a level-compressed trie (Nilsson and Karlsson, 1999): the `bits` bits at `pos` of the
 * address select one of the 2^bits nodes from `first` on. If `bits` is 0, `first` is a leaf.
 */
struct node {
	__u32 first;
	__u8 pos;
	__u8 bits;
	__u16 zero;
};

/* A bound prefix, left-aligned in 128 bits, and its service.
 * `parent` is the leaf to try next when this one does not match; 0 ends the chain.
 */
struct leaf {
	__u64 high;
	__u64 low;
	__u64 mask_high;
	__u64 mask_low;
	__u32 parent;
	__u32 service;
	/* Interface by which the packet must arrive; 0 for any. */
	__u32 ifindex;
	/* Length of the prefix, to compare the leaves of the port and of any port. */
	__u32 length;
	/* address_base + IPv4 address = index of the address's counter. */
	__u64 address_base;
	__u64 zero;
};

struct counters {
	__u64 lookups;
	__u64 misses;
	__u64 wrong_family;   /* EAFNOSUPPORT */
	__u64 wrong_protocol; /* EPROTOTYPE */
	__u64 wrong_state;    /* ESOCKTNOSUPPORT */
	/* Not an error: an earlier program had chosen a socket. */
	__u64 replaced;
	__u64 other_error;
	__u64 zero;
};

/* An IPv6 address and its number of look-ups; a set has the addresses with the same hash. */
struct seen {
	__u64 high;
	__u64 low;
	__u64 count;
};

struct seen_set {
	struct seen ways[SEEN_WAYS];
};

/* The result of `explain`, and its input besides the packet. */
struct answer {
	__u32 bound;
	__u32 service;
	__u32 length;
	__u32 ifindex;
	/* 0: a socket takes it; NO_SOCKET: a miss; negative: error of bpf_sk_assign. */
	__s32 error;
	/* Input, since BPF_PROG_TEST_RUN accepts no interface in the context. */
	__u32 asked_ifindex;
};

/* What changes in a generation: the result of `explain`, and hints by user space.
 *
 * Bit n of `empty[group]` promises that slot n of the group is empty. A bit that is 0 promises
 * nothing, so that 0 is right for every group.
 */
struct answers {
	struct answer answer;
	__u8 empty[MAX_GROUPS];
};

/* An address for `prove`, and the expected service, plus one; 0 for none. */
struct question {
	__u64 high;
	__u64 low;
	__u64 expected;
};

/* Input: the questions from `next` up to `end`, for one port. Result: the number of wrong answers,
 * the first wrong question, and the service that it found, plus one.
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
	__type(value, struct answers);
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
 * knows their values, and removes the code for those that are 0.
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

/* Return the number of the leaf that the address leads to from a root; 0 if there is none. */
static __always_inline __u32 descend(__u32 root, const struct target *target)
{
	__u32 index = root;

	if (root & ROOT_IS_LEAF)
		return root & ~ROOT_IS_LEAF;
	for (int depth = 0; depth < MAX_DEPTH; depth++) {
		const struct node *node = bpf_map_lookup_elem(&nodes, &index);
		__u64 word;

		if (!node)
			break;
		if (!node->bits)
			return node->first;
		word = node->pos < 64 ? target->high : target->low;
		index = node->first + (word << (node->pos & 63) >> (64 - node->bits));
	}
	return 0;
}

/* Return the leaf of the longest prefix below `root` that matches, or NULL. */
static __always_inline const struct leaf *find(__u32 root, const struct target *target)
{
	__u32 number = descend(root, target);

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

/* Choose between the leaf of a port and that of any port: the longer prefix, else the port's. */
static __always_inline const struct leaf *choose(const struct leaf *own, const struct leaf *any)
{
	if (!own)
		return any;
	if (any && any->length > own->length)
		return any;
	return own;
}

/* Roots of the tries of the bindings at a port. `port` is the port number, plus 65536 for UDP. */
struct roots {
	__u32 own;
	__u32 any;
};

static __always_inline struct roots roots_of(__u32 port, int is_ipv6)
{
	struct roots roots = {};
	const struct port *found = bpf_map_lookup_elem(&ports, &port);
	int is_udp = port >> 16;
	__u32 root;

	if (!found)
		return roots;
	root = is_ipv6 ? found->ipv6 : found->ipv4;
	roots.own = root & ~ROOT_AND_ANY;
	/* The bit saves a read of a cache line that hardly any table needs. */
	if (!(root & ROOT_AND_ANY))
		return roots;
	if (is_ipv6)
		roots.any = is_udp ? any_udp_ipv6 : any_tcp_ipv6;
	else
		roots.any = is_udp ? any_udp_ipv4 : any_tcp_ipv4;
	return roots;
}

/* Return the binding that takes a packet to this address, or NULL. */
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

/* If all ways of the set are in use, decrement the count of one of them, and replace it once that
 * is 0. So busy addresses stay, and rare ones replace one another.
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

/* Assign the packet to the socket in a slot. Returns 0, NO_SOCKET, or bpf_sk_assign's error. */
static __always_inline long assign(struct bpf_sk_lookup *ctx, __u32 slot, __u64 flags)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&sockets, &slot);
	long error;

	if (!sk)
		return NO_SOCKET;
	error = bpf_sk_assign(ctx, sk, flags);
	bpf_sk_release(sk);
	return error;
}

/* Assign the packet to a socket in the other slots of a group. `error` is the result for the first
 * slot, and is returned if no other socket takes the packet, unless it is NO_SOCKET and another has
 * an error.
 */
static __always_inline long assign_other(struct bpf_sk_lookup *ctx, __u32 group, __u64 flags,
					 long error)
{
	__u32 zero = 0, slots;
	struct answers *hints = bpf_map_lookup_elem(&answers, &zero);
	long found;

	if (!hints)
		return error;
	group &= MAX_GROUPS - 1;
	slots = OTHER_SLOTS & ~hints->empty[group];
	if (!slots)
		return error;
	for (__u32 slot = 1; slot < SOCKET_SLOTS; slot++) {
		if (!(slots >> slot & 1))
			continue;
		found = assign(ctx, group * SOCKET_SLOTS + slot, flags);
		if (!found)
			return 0;
		if (error == NO_SOCKET)
			error = found;
	}
	/* A registration may have filled the first slot since, and then emptied these. */
	found = assign(ctx, group * SOCKET_SLOTS, flags);
	return found == NO_SOCKET ? error : found;
}

/* Assign a packet that the socket in the first slot of its group did not take. Out of line, since
 * most packets never get here.
 */
static __noinline long assign_rest(struct bpf_sk_lookup *ctx, __u32 group, __u64 flags, long error)
{
	long found;

	error = assign_other(ctx, group, flags, error);
	if (!error || group & 1)
		return error;
	/* IPv4: the packet may go to a dual-stack socket. */
	group++;
	found = assign(ctx, group * SOCKET_SLOTS, flags);
	if (found)
		found = assign_other(ctx, group, flags, found);
	if (!found || (error == NO_SOCKET && found != -EAFNOSUPPORT))
		return found;
	return error;
}

/* The body of `dispatch` and `explain`; `explain` reports what `dispatch` would do, without
 * counting.
 *
 * A hit replaces the choice of an earlier program (BPF_SK_LOOKUP_F_REPLACE). A miss cannot: the
 * kernel keeps the last socket that was chosen, whatever a later program returns.
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
		/* A real packet: `explain` was attached by mistake. Pass it. */
		if (ctx->remote_port || ctx->ingress_ifindex)
			return SK_PASS;
		struct answers *found = bpf_map_lookup_elem(&answers, &zero);

		if (!found)
			return SK_DROP;
		answer = &found->answer;
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
	error = assign(ctx, group * SOCKET_SLOTS, flags);
	if (error)
		error = assign_rest(ctx, group, flags, error);
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
	if (error == NO_SOCKET)
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

/* Verify a table: each run answers one question of a batch by the same code as `dispatch`. The
 * packet is in a map, so that one call from user space answers all questions.
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
