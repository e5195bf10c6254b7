/*
 * whoami [PORT]: tells who answers and who asked, over HTTP and UDP, IPv4 and IPv6, on one port (80).
 *
 *   GET /anything     text: host name, own addresses, the client's address and port, the request line and headers
 *   GET /json         the same facts as JSON
 *   GET /bytes/N      N zero bytes, for throughput
 *   a UDP datagram    the text above, then the datagram itself
 *
 * Why C and not busybox httpd: that one forks for every request, closes every connection, cannot speak UDP and, as
 * process 1 of a container, ignores SIGTERM. This one keeps connections alive, which load tests need, and ends without
 * cutting anybody off: told to stop, it goes on answering, each answer with `Connection: close`, until no connection is
 * left. One that asks nothing for LINGER_MS is closed; closing it at once would meet requests that are on their way.
 * Without connections it ends at once.
 * One thread, epoll, no allocation per request. Linked statically, so that the image needs no libraries.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINGER_MS = 500 };
enum { HEAD_MAX = 8192, REPLY_MAX = 3 * HEAD_MAX, DATAGRAM_MAX = 65507, ADDRESSES_MAX = 64 };

typedef enum { TCP_LISTENER, UDP_SOCKET, CONNECTION } Kind;

typedef struct {
    Kind kind;
    int fd;
    size_t filled;           /* bytes of `in` that wait to be read as a request */
    size_t skip;             /* bytes of a request's body still to be ignored */
    size_t out_len, out_at;  /* the reply in `out`, and how much of it is sent */
    unsigned long long zeros; /* bytes of a /bytes answer still to send after `out` */
    int closing;             /* close when the reply is out */
    unsigned watched;        /* what epoll waits for, so that an unchanged wish costs no call */
    char in[HEAD_MAX + 1], out[REPLY_MAX];
} Peer;

typedef struct {
    char *at, *end;
} Text;

static char host_name[256] = "?";
static int poller;
static int connections;
static volatile sig_atomic_t stopping;
static const char zero_block[65536];

static void append(Text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text->at, text->end - text->at, format, arguments);
    va_end(arguments);
    text->at += length < text->end - text->at ? length : text->end - text->at - 1;
}

static void leave(int signal) {
    (void)signal;
    stopping = 1;
}

static const char *address_of(const struct sockaddr *from, char *buffer) {
    if (from->sa_family == AF_INET6)
        return inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)from)->sin6_addr, buffer, INET6_ADDRSTRLEN);
    return inet_ntop(AF_INET, &((const struct sockaddr_in *)from)->sin_addr, buffer, INET6_ADDRSTRLEN);
}

static void say_end(Text *text, const char *name, const struct sockaddr_storage *end) {
    char buffer[INET6_ADDRSTRLEN];
    const char *address = address_of((const struct sockaddr *)end, buffer);
    int port = ntohs(((const struct sockaddr_in *)end)->sin_port); /* the same place in both families */
    append(text, end->ss_family == AF_INET6 ? "%s: [%s]:%d\n" : "%s: %s:%d\n", name, address, port);
}

/* Own addresses are asked once a second at most: interfaces rarely change, and getifaddrs costs more than an answer. */
static int own_addresses(char addresses[ADDRESSES_MAX][INET6_ADDRSTRLEN]) {
    struct ifaddrs *all, *one;
    int count = 0;
    if (getifaddrs(&all)) return 0;
    for (one = all; one && count < ADDRESSES_MAX; one = one->ifa_next) {
        if (!one->ifa_addr || one->ifa_flags & IFF_LOOPBACK) continue;
        int family = one->ifa_addr->sa_family;
        if (family != AF_INET && family != AF_INET6) continue;
        if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&((struct sockaddr_in6 *)one->ifa_addr)->sin6_addr)) continue;
        if (address_of(one->ifa_addr, addresses[count])) count++;
    }
    freeifaddrs(all);
    return count;
}

static char known[ADDRESSES_MAX][INET6_ADDRSTRLEN];
static int known_count;

static void refresh_addresses(void) {
    static time_t asked;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (asked == now.tv_sec + 1) return;
    asked = now.tv_sec + 1;
    known_count = own_addresses(known);
}

static void say_facts(Text *text, const struct sockaddr_storage *client, const struct sockaddr_storage *local) {
    refresh_addresses();
    append(text, "Hostname: %s\n", host_name);
    for (int i = 0; i < known_count; i++) append(text, "IP: %s\n", known[i]);
    say_end(text, "RemoteAddr", client);
    say_end(text, "LocalAddr", local);
}

static void quote(Text *text, const char *from, size_t length) {
    append(text, "\"");
    for (size_t i = 0; i < length; i++) {
        unsigned char c = from[i];
        if (c == '"' || c == '\\') append(text, "\\%c", c);
        else if (c < 0x20 || c > 0x7e) append(text, "\\u%04x", c);
        else append(text, "%c", c);
    }
    append(text, "\"");
}

/* `head` is the request line and the headers, lines ended by \r\n, without the empty line. */
static void say_json(Text *text, const char *head, const struct sockaddr_storage *client) {
    char buffer[INET6_ADDRSTRLEN];
    refresh_addresses();
    append(text, "{\"hostname\": ");
    quote(text, host_name, strlen(host_name));
    append(text, ", \"addresses\": [");
    for (int i = 0; i < known_count; i++) append(text, "%s\"%s\"", i ? ", " : "", known[i]);
    append(text, "], \"client\": {\"address\": \"%s\", \"port\": %d}, \"request\": ",
           address_of((const struct sockaddr *)client, buffer), ntohs(((const struct sockaddr_in *)client)->sin_port));
    const char *line = head, *end = strstr(head, "\r\n");
    quote(text, line, end ? (size_t)(end - line) : strlen(line));
    append(text, ", \"headers\": {");
    for (int first = 1; end; first = 0) {
        line = end + 2;
        end = strstr(line, "\r\n");
        size_t length = end ? (size_t)(end - line) : strlen(line);
        const char *colon = memchr(line, ':', length);
        if (!colon) break;
        const char *value = colon + 1;
        while (value < line + length && *value == ' ') value++;
        append(text, first ? "" : ", ");
        quote(text, line, colon - line);
        append(text, ": ");
        quote(text, value, line + length - value);
    }
    append(text, "}}\n");
}

static const char *header(const char *head, const char *name) {
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        size_t length = strlen(name);
        if (!strncasecmp(line, name, length) && line[length] == ':') {
            for (line += length + 1; *line == ' ';) line++;
            return line;
        }
    }
    return NULL;
}

static void forget(Peer *peer) {
    close(peer->fd);
    free(peer);
    connections--;
}

/* Puts the reply to one request into `peer->out`. The head ends with a NUL where its empty line began. */
static void reply(Peer *peer, const char *head) {
    struct sockaddr_storage client, local;
    socklen_t client_size = sizeof client, local_size = sizeof local;
    if (getpeername(peer->fd, (struct sockaddr *)&client, &client_size)) client.ss_family = AF_INET;
    if (getsockname(peer->fd, (struct sockaddr *)&local, &local_size)) local.ss_family = AF_INET;

    char body[REPLY_MAX - 512], version = '1';
    Text text = {body, body + sizeof body};
    const char *type = "text/plain; charset=utf-8", *path = strchr(head, ' '), *line_end = strstr(head, "\r\n");
    const char *tail = line_end ? line_end : head + strlen(head);
    path = path && path < tail ? path + 1 : "";
    if (tail - head >= 8 && !strncmp(tail - 8, "HTTP/1.0", 8)) version = '0';
    unsigned long long zeros = 0;
    if (!strncmp(path, "/bytes/", 7)) {
        zeros = strtoull(path + 7, NULL, 10);
        type = "application/octet-stream";
    } else if (!strncmp(path, "/json", 5)) {
        say_json(&text, head, &client);
        type = "application/json";
    } else {
        say_facts(&text, &client, &local);
        for (const char *c = head; *c; c++)
            if (*c != '\r') append(&text, "%c", *c);
        append(&text, "\n");
    }
    const char *connection = header(head, "Connection");
    const char *length = header(head, "Content-Length");
    peer->skip = length ? strtoull(length, NULL, 10) : 0;
    if (connection && !strncasecmp(connection, "close", 5)) peer->closing = 1;
    if (stopping) peer->closing = 1;
    if (version == '0' && !(connection && !strncasecmp(connection, "keep-alive", 10))) peer->closing = 1;
    size_t size = text.at - body;
    Text out = {peer->out, peer->out + sizeof peer->out};
    append(&out, "HTTP/1.%c 200 OK\r\nContent-Type: %s\r\nContent-Length: %llu\r\nConnection: %s\r\n\r\n", version, type,
           zeros ? zeros : (unsigned long long)size, peer->closing ? "close" : "keep-alive");
    if (!strncmp(head, "HEAD ", 5)) zeros = 0, size = 0;
    memcpy(out.at, body, size);
    peer->out_len = out.at - peer->out + size;
    peer->out_at = 0;
    peer->zeros = zeros;
}

/* Sends what is due. 1: all of it is out; 0: the socket is full; -1: the peer is gone. */
static int flush(Peer *peer) {
    while (peer->out_at < peer->out_len || peer->zeros) {
        int head = peer->out_at < peer->out_len;
        size_t due = head ? peer->out_len - peer->out_at : peer->zeros < sizeof zero_block ? peer->zeros : sizeof zero_block;
        const char *from = head ? peer->out + peer->out_at : zero_block;
        ssize_t sent = send(peer->fd, from, due, MSG_NOSIGNAL | (head && peer->zeros ? MSG_MORE : 0));
        if (sent < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
        if (head) peer->out_at += sent;
        else peer->zeros -= sent;
    }
    return 1;
}

static void watch(Peer *peer, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (peer->watched != events) epoll_ctl(poller, peer->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, peer->fd, &event);
    peer->watched = events;
}

/* Answers every whole request that has arrived; leaves when the socket is full and continues when it is not. */
static void serve(Peer *peer) {
    for (;;) {
        int done = flush(peer);
        if (done < 0) return forget(peer);
        if (!done) return watch(peer, EPOLLOUT);
        if (peer->closing) {
            shutdown(peer->fd, SHUT_WR);
            return forget(peer);
        }
        if (peer->skip) {
            size_t drop = peer->skip < peer->filled ? peer->skip : peer->filled;
            memmove(peer->in, peer->in + drop, peer->filled -= drop);
            peer->skip -= drop;
        }
        peer->in[peer->filled] = 0;
        char *end = peer->skip ? NULL : strstr(peer->in, "\r\n\r\n");
        if (end) {
            *end = 0;
            reply(peer, peer->in);
            size_t used = end + 4 - peer->in;
            memmove(peer->in, peer->in + used, peer->filled -= used);
            continue;
        }
        if (peer->filled == HEAD_MAX) return forget(peer); /* no such head is honest */
        ssize_t got = recv(peer->fd, peer->in + peer->filled, HEAD_MAX - peer->filled, 0);
        if (got > 0) peer->filled += got;
        else if (got < 0 && (errno == EAGAIN || errno == EINTR)) return watch(peer, EPOLLIN);
        else return forget(peer);
    }
}

static Peer *new_peer(Kind kind, int fd) {
    Peer *peer = malloc(sizeof *peer);
    if (!peer) return NULL;
    memset(peer, 0, offsetof(Peer, in));
    peer->kind = kind;
    peer->fd = fd;
    return peer;
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Peer *peer = new_peer(CONNECTION, fd);
        if (!peer) {
            close(fd);
            continue;
        }
        connections++;
        serve(peer); /* what the client already sent is answered without a turn of the loop */
    }
}

/* The answer leaves from the address that was asked: a host with several would otherwise choose another one. */
static void answer_datagrams(int fd) {
    static char in[DATAGRAM_MAX], out[DATAGRAM_MAX];
    for (;;) {
        struct sockaddr_storage client, local;
        char control[CMSG_SPACE(sizeof(struct in6_pktinfo))];
        struct iovec part = {in, sizeof in};
        struct msghdr message = {&client, sizeof client, &part, 1, control, sizeof control, 0};
        ssize_t got = recvmsg(fd, &message, 0);
        if (got < 0) return;
        socklen_t size = sizeof local;
        getsockname(fd, (struct sockaddr *)&local, &size); /* for the port; the address follows */
        struct cmsghdr *item = CMSG_FIRSTHDR(&message);
        if (item && item->cmsg_level == IPPROTO_IP && item->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo *info = (struct in_pktinfo *)CMSG_DATA(item);
            ((struct sockaddr_in *)&local)->sin_addr = info->ipi_addr;
            info->ipi_spec_dst = info->ipi_addr;
            info->ipi_ifindex = 0;
        } else if (item && item->cmsg_level == IPPROTO_IPV6 && item->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo *info = (struct in6_pktinfo *)CMSG_DATA(item);
            ((struct sockaddr_in6 *)&local)->sin6_addr = info->ipi6_addr;
            if (!IN6_IS_ADDR_LINKLOCAL(&info->ipi6_addr)) info->ipi6_ifindex = 0;
        }
        Text text = {out, out + sizeof out};
        say_facts(&text, &client, &local);
        size_t room = text.end - text.at, echoed = (size_t)got < room ? (size_t)got : room;
        memcpy(text.at, in, echoed);
        part = (struct iovec){out, text.at - out + echoed};
        sendmsg(fd, &message, MSG_NOSIGNAL);
    }
}

static void listen_on(int family, int type, int port) {
    int on = 1, fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return; /* a kernel without IPv6 */
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_ANY_INIT};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (type == SOCK_DGRAM && family == AF_INET) setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    if (type == SOCK_DGRAM && family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
    int failed = family == AF_INET ? bind(fd, (struct sockaddr *)&v4, sizeof v4) : bind(fd, (struct sockaddr *)&v6, sizeof v6);
    if (failed || (type == SOCK_STREAM && listen(fd, 4096))) {
        fprintf(stderr, "whoami: port %d: %s\n", port, strerror(errno));
        exit(1);
    }
    watch(new_peer(type == SOCK_STREAM ? TCP_LISTENER : UDP_SOCKET, fd), EPOLLIN);
}

int main(int argc, char **argv) {
    int port = argc > 1 ? atoi(argv[1]) : 80;
    if (argc > 2 || port < 1 || port > 65535) {
        fprintf(stderr, "usage: whoami [PORT]\n");
        return 2;
    }
    /* Blocked but for the wait for events, so that none comes between a look at `stopping` and that wait. */
    sigset_t stop, open;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigprocmask(SIG_BLOCK, &stop, &open);
    struct sigaction leaving = {.sa_handler = leave};
    sigaction(SIGTERM, &leaving, NULL);
    sigaction(SIGINT, &leaving, NULL);
    signal(SIGPIPE, SIG_IGN);
    const char *name = getenv("WHOAMI_NAME"); /* where tasks share a host name */
    if (name) snprintf(host_name, sizeof host_name, "%s", name);
    else gethostname(host_name, sizeof host_name - 1);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int families[] = {AF_INET, AF_INET6}, types[] = {SOCK_STREAM, SOCK_DGRAM};
    for (int i = 0; i < 4; i++) listen_on(families[i / 2], types[i % 2], port);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_pwait(poller, events, 256, !stopping ? -1 : connections ? LINGER_MS : 0, &open);
        if (stopping && count == 0) return 0; /* who asked nothing for so long is closed by our end */
        for (int i = 0; i < count; i++) {
            Peer *peer = events[i].data.ptr;
            if (peer->kind == TCP_LISTENER) accept_all(peer->fd);
            else if (peer->kind == UDP_SOCKET) answer_datagrams(peer->fd);
            else serve(peer);
        }
    }
}
