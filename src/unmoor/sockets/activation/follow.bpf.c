// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Registers a new listener of a followed process within its call of listen(2)
 * or bind(2).
 *
 * A server that reloads by new sockets opens the new one, then closes the old
 * one, which leaves the socket map at that moment. User space cannot be sure to
 * notice in between. So this program puts a new TCP listener into the map
 * itself: BPF_PROG_TYPE_SOCK_OPS may do that in listen(2), attached to the
 * control group of the process. No hook may do it for UDP; bind(2) only raises
 * an event.
 *
 * `targets` are the sockets to follow. User space fills it, and after each
 * event registers all sockets of the process again, in order.
 */
#include <linux/bpf.h>
#include <linux/in.h>

#include <bpf/bpf_helpers.h>

/* layout.py has the same sizes. */
#define SOCKET_SLOTS 8

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10

/* A local address (network byte order; IPv4: the first word only) and port. */
struct target {
  __u32 address[4];
  __u32 family;
  __u32 protocol;
  __u32 port;
  __u32 zero;
};

/* The first slot of the service's group in `sockets`; `next` counts
 * replacements. */
struct place {
  __u32 first;
  __u32 next;
};

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 64);
  __type(key, struct target);
  __type(value, struct place);
} targets SEC(".maps");

/* The map of the dispatch program. */
struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} sockets SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 4096);
} events SEC(".maps");

/* The cookie of the network namespace: its sockets only. */
const volatile __u64 netns;

/* The first slot, which every look-up reads first; and one of the others, for
 * when a newer listener in the first slot closes before this one, as after a
 * reload that fails.
 */
static __always_inline void fill(struct bpf_sock_ops *ctx,
                                 struct place *place) {
  __u32 slot = place->first;

  for (int n = 1; n < SOCKET_SLOTS; n++) {
    slot++;
    if (!bpf_sock_map_update(ctx, &sockets, &slot, BPF_NOEXIST))
      goto first;
  }
  slot = place->first + 1 +
         __sync_fetch_and_add(&place->next, 1) % (SOCKET_SLOTS - 1);
  bpf_sock_map_update(ctx, &sockets, &slot, BPF_ANY);
first:
  slot = place->first;
  bpf_sock_map_update(ctx, &sockets, &slot, BPF_ANY);
}

SEC("sockops")
int listening(struct bpf_sock_ops *ctx) {
  struct target target = {.family = ctx->family, .protocol = IPPROTO_TCP};
  struct place *place;

  if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB ||
      bpf_get_netns_cookie(ctx) != netns)
    return 1;
  target.port = ctx->local_port;
  if (target.family == FAMILY_IPV4) {
    target.address[0] = ctx->local_ip4;
  } else {
    target.address[0] = ctx->local_ip6[0];
    target.address[1] = ctx->local_ip6[1];
    target.address[2] = ctx->local_ip6[2];
    target.address[3] = ctx->local_ip6[3];
  }
  place = bpf_map_lookup_elem(&targets, &target);
  if (place) {
    fill(ctx, place);
    bpf_ringbuf_output(&events, &target, sizeof(target), 0);
  }
  return 1;
}

static __always_inline int bound(struct bpf_sock *ctx, struct target *target) {
  target->family = ctx->family;
  target->protocol = ctx->protocol;
  target->port = ctx->src_port;
  if (target->protocol == IPPROTO_UDP && bpf_map_lookup_elem(&targets, target))
    bpf_ringbuf_output(&events, target, sizeof(*target), 0);
  return 1;
}

SEC("cgroup/post_bind4")
int bound4(struct bpf_sock *ctx) {
  struct target target = {.address = {ctx->src_ip4}};

  return bound(ctx, &target);
}

SEC("cgroup/post_bind6")
int bound6(struct bpf_sock *ctx) {
  struct target target = {};

  target.address[0] = ctx->src_ip6[0];
  target.address[1] = ctx->src_ip6[1];
  target.address[2] = ctx->src_ip6[2];
  target.address[3] = ctx->src_ip6[3];
  return bound(ctx, &target);
}

char _license[] SEC("license") = "Dual BSD/GPL";
