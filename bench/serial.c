/*
 * serial HOST PORT close|keep BATCHES SIZE CPU: one client, one request at a time, all on one processor.
 *
 * Prints for each batch of SIZE requests the microseconds each took. With the server on the same processor, nothing runs
 * beside anything else: what a request takes is what all its steps cost, and the batches nobody disturbed tell it.
 */
#define _GNU_SOURCE
#include <netdb.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec * 1e6 + moment.tv_nsec / 1e3;
}

static int fail(const char *what) {
    perror(what);
    return 1;
}

int main(int count, char **words) {
    if (count != 7) {
        fprintf(stderr, "usage: serial HOST PORT close|keep BATCHES SIZE CPU\n");
        return 2;
    }
    int closing = !strcmp(words[3], "close"), batches = atoi(words[4]), size = atoi(words[5]), connection = -1;
    cpu_set_t processor;
    CPU_ZERO(&processor);
    CPU_SET(atoi(words[6]), &processor);
    if (sched_setaffinity(0, sizeof processor, &processor)) return fail("sched_setaffinity");
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *server;
    if (getaddrinfo(words[1], words[2], &hints, &server)) return fail(words[1]);
    char request[256], reply[16384];
    int length = snprintf(request, sizeof request, "GET / HTTP/1.1\r\nHost: x\r\n%s\r\n",
                          closing ? "Connection: close\r\n" : "");
    for (int batch = 0; batch < batches; batch++) {
        double began = now();
        for (int i = 0; i < size; i++) {
            if (connection < 0) {
                connection = socket(server->ai_family, SOCK_STREAM, 0);
                if (connect(connection, server->ai_addr, server->ai_addrlen)) return fail("connect");
            }
            if (write(connection, request, length) != length) return fail("write");
            ssize_t got = read(connection, reply, sizeof reply); /* the answer comes in one piece */
            if (got <= 0) return fail("read");
            if (closing) {
                while (read(connection, reply, sizeof reply) > 0)
                    ;
                close(connection);
                connection = -1;
            }
        }
        printf("%.2f\n", (now() - began) / size);
    }
    return 0;
}
