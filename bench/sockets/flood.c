// SPDX-License-Identifier: Apache-2.0
/* Floods one address and port over IPv4 from one source address and 10,000 source ports for some
 * milliseconds, and prints packets sent per second of CPU time. A veth pair handles a packet on the
 * sender's CPU, so this includes the cost on both sides.
 *
 *   flood tcp|udp|connect SOURCE DESTINATION PORT MILLISECONDS
 *   flood accept DESCRIPTOR
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define SOURCE_PORTS 10000
#define FIRST_SOURCE_PORT 20000

struct packet {
	struct iphdr ip;
	union {
		struct tcphdr tcp;
		struct udphdr udp;
	};
};

static double seconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static unsigned int sum(const void *data, int length)
{
	const unsigned short *words = data;
	unsigned int total = 0;

	for (; length > 1; length -= 2)
		total += *words++;
	return total;
}

static unsigned short fold(unsigned int total)
{
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return ~total;
}

static int prepare(struct packet *packet, int protocol, in_addr_t source, in_addr_t destination,
		   int port)
{
	int length = protocol == IPPROTO_TCP ? sizeof(packet->tcp) : sizeof(packet->udp);

	memset(packet, 0, sizeof(*packet));
	packet->ip.version = 4;
	packet->ip.ihl = 5;
	packet->ip.ttl = 64;
	packet->ip.protocol = protocol;
	packet->ip.saddr = source;
	packet->ip.daddr = destination;
	if (protocol == IPPROTO_TCP) {
		packet->tcp.dest = htons(port);
		packet->tcp.syn = 1;
		packet->tcp.doff = 5;
		packet->tcp.window = htons(1024);
	} else {
		packet->udp.dest = htons(port);
		packet->udp.len = htons(length);
	}
	return sizeof(packet->ip) + length;
}

static void set_source_port(struct packet *packet, int port)
{
	unsigned int total;

	if (packet->ip.protocol == IPPROTO_UDP) {
		packet->udp.source = htons(port); /* without a checksum, as UDP over IPv4 may be */
		return;
	}
	packet->tcp.source = htons(port);
	packet->tcp.seq = htonl(port * 7919);
	packet->tcp.check = 0;
	total = sum(&packet->ip.saddr, 8) + htons(IPPROTO_TCP) + htons(sizeof(packet->tcp));
	packet->tcp.check = fold(total + sum(&packet->tcp, sizeof(packet->tcp)));
}

/* Connections made and reset per second of processor time. */
static double connect_and_reset(const char *destination, int port, int milliseconds)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct linger reset = {.l_onoff = 1};
	double begin = seconds(CLOCK_PROCESS_CPUTIME_ID);
	double end = seconds(CLOCK_MONOTONIC) + milliseconds / 1e3;
	long made = 0;

	to.sin_addr.s_addr = inet_addr(destination);
	while (seconds(CLOCK_MONOTONIC) < end) {
		int sock = socket(AF_INET, SOCK_STREAM, 0);

		made += !connect(sock, (struct sockaddr *)&to, sizeof(to));
		setsockopt(sock, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(sock);
	}
	return made / (seconds(CLOCK_PROCESS_CPUTIME_ID) - begin);
}

/* The server for it: accepts at an inherited descriptor until it is killed. */
static int accept_all(int sock)
{
	for (;;)
		close(accept(sock, NULL, NULL));
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	struct mmsghdr messages[BATCH] = {0};
	struct packet packets[BATCH];
	struct iovec vectors[BATCH];
	int sock, length = 0, protocol, buffer = 1 << 22;
	double end, begin;
	long sent = 0;

	if (argc == 3 && !strcmp(argv[1], "accept"))
		return accept_all(atoi(argv[2]));
	if (argc != 6)
		return 2;
	if (!strcmp(argv[1], "connect")) {
		printf("%.0f\n", connect_and_reset(argv[3], atoi(argv[4]), atoi(argv[5])));
		return 0;
	}
	protocol = strcmp(argv[1], "tcp") ? IPPROTO_UDP : IPPROTO_TCP;
	to.sin_addr.s_addr = inet_addr(argv[3]);
	sock = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	if (sock < 0) {
		perror("socket");
		return 1;
	}
	setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
	for (int i = 0; i < BATCH; i++) {
		length = prepare(&packets[i], protocol, inet_addr(argv[2]), to.sin_addr.s_addr,
				 atoi(argv[4]));
		vectors[i] = (struct iovec){&packets[i], length};
		messages[i].msg_hdr = (struct msghdr){.msg_name = &to,
						      .msg_namelen = sizeof(to),
						      .msg_iov = &vectors[i],
						      .msg_iovlen = 1};
	}
	begin = seconds(CLOCK_PROCESS_CPUTIME_ID);
	end = seconds(CLOCK_MONOTONIC) + atoi(argv[5]) / 1e3;
	while (seconds(CLOCK_MONOTONIC) < end) {
		for (int i = 0; i < BATCH; i++)
			set_source_port(&packets[i], FIRST_SOURCE_PORT + (sent + i) % SOURCE_PORTS);
		int done = sendmmsg(sock, messages, BATCH, 0);

		if (done > 0)
			sent += done;
	}
	printf("%.0f\n", sent / (seconds(CLOCK_PROCESS_CPUTIME_ID) - begin));
	return 0;
}
