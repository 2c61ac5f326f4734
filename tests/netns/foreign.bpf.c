// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Somebody else's sk_lookup programs, attached beside ours: one that passes, one that drops, and
 * two that choose a socket of their own, politely or not.
 */
#include <linux/bpf.h>
#include <linux/stddef.h>

#include <bpf/bpf_helpers.h>

#define PORT 80

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} theirs SEC(".maps");

static __always_inline int choose(struct bpf_sk_lookup *ctx, __u64 flags)
{
	struct bpf_sock *sk;
	__u32 zero = 0;
	long error;

	if (ctx->local_port != PORT)
		return SK_PASS;
	sk = bpf_map_lookup_elem(&theirs, &zero);
	if (!sk)
		return SK_DROP;
	error = bpf_sk_assign(ctx, sk, flags);
	bpf_sk_release(sk);
	return error ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int pass(struct bpf_sk_lookup *ctx __attribute__((unused)))
{
	return SK_PASS;
}

SEC("sk_lookup")
int drop(struct bpf_sk_lookup *ctx)
{
	return ctx->local_port == PORT ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int redirect(struct bpf_sk_lookup *ctx)
{
	return choose(ctx, 0);
}

SEC("sk_lookup")
int replace(struct bpf_sk_lookup *ctx)
{
	return choose(ctx, BPF_SK_LOOKUP_F_REPLACE);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
