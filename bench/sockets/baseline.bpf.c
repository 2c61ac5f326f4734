// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The baseline: a program with one longest-prefix-match trie that is looked up twice, for the port
 * and for any port. And an empty program, which takes the time of the test run alone.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FAMILY_IPV4 2

/* IPv4 addresses are written as ::ffff:a.b.c.d, so that one trie serves both families. Packed,
 * since every byte of the key is a step of the trie.
 */
struct key {
	__u32 length;
	__u8 protocol;
	__u16 port;
	__u32 address[4];
} __attribute__((packed));

struct value {
	__u32 destination;
	__u32 length;
};

struct counters {
	__u64 lookups;
	__u64 misses;
	__u64 errors[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct value);
} bindings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

SEC("sk_lookup")
int baseline(struct bpf_sk_lookup *ctx)
{
	struct key key = {.length = 152};
	struct value *exact, *any, *found;
	struct counters *count;
	struct bpf_sock *sk;
	__u32 number;
	long error;

	key.protocol = ctx->protocol;
	key.port = ctx->local_port;
	if (ctx->family == FAMILY_IPV4) {
		key.address[2] = bpf_htonl(0xffff);
		key.address[3] = ctx->local_ip4;
		barrier(); /* or clang merges both loads into one that the verifier refuses */
	} else {
		key.address[0] = ctx->local_ip6[0];
		key.address[1] = ctx->local_ip6[1];
		key.address[2] = ctx->local_ip6[2];
		key.address[3] = ctx->local_ip6[3];
	}
	exact = bpf_map_lookup_elem(&bindings, &key);
	key.port = 0;
	any = bpf_map_lookup_elem(&bindings, &key);
	found = exact;
	if (!exact || (any && any->length > exact->length))
		found = any;
	if (!found)
		return SK_PASS;

	number = found->destination;
	count = bpf_map_lookup_elem(&counters, &number);
	if (!count)
		return SK_DROP;
	count->lookups++;
	sk = bpf_map_lookup_elem(&sockets, &number);
	if (!sk) {
		count->misses++;
		return SK_DROP;
	}
	error = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	if (error) {
		count->errors[0]++;
		return SK_DROP;
	}
	return SK_PASS;
}

/* The minimum of any such program: look up, assign and release a socket. */
SEC("sk_lookup")
int least(struct bpf_sk_lookup *ctx)
{
	__u32 number = ctx->family != FAMILY_IPV4;
	struct bpf_sock *sk = bpf_map_lookup_elem(&sockets, &number);
	long error;

	if (!sk)
		return SK_DROP;
	error = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return error ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int empty(struct bpf_sk_lookup *ctx __attribute__((unused)))
{
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
