/* A switch between TAP devices, with links of a given rate and delay: `delayed_switch BITS_PER_SECOND SECONDS NAME ...`.

Each device is one end of a link, full duplex. A frame takes its size over the rate, one after the other, on the link of
its sender and on that of its receiver, which begins as soon as the first does; it arrives the delay after that. No frame
is lost. A line is written to stdout when all devices are there, and the switch ends when stdin does. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { PORTS = 16, LARGEST = 65600 };

struct frame {
    double due;
    struct frame *next;
    size_t size;
    unsigned char bytes[];
};

static struct port {
    int device;
    unsigned char address[6];
    double sending, receiving; /* when its link is free */
    struct frame *first, *last;
} ports[PORTS];

static int count;
static double rate, delay;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double later(double a, double b) { return a > b ? a : b; }

static void queue(struct port *from, struct port *to, const unsigned char *bytes, size_t size, double begun) {
    struct frame *frame = malloc(sizeof *frame + size);
    if (frame == NULL)
        fail("malloc");
    double start = later(begun, to->receiving), takes = 8 * size / rate;
    to->receiving = start + takes;
    *frame = (struct frame){.due = later(to->receiving, from->sending) + delay, .size = size};
    memcpy(frame->bytes, bytes, size);
    if (to->first == NULL)
        to->first = frame;
    else
        to->last->next = frame;
    to->last = frame;
}

static void take(struct port *from) {
    static unsigned char bytes[LARGEST];
    ssize_t size;
    while ((size = read(from->device, bytes, sizeof bytes)) > 0) {
        double begun = later(now(), from->sending);
        from->sending = begun + 8 * size / rate;
        memcpy(from->address, bytes + 6, 6); /* learned, as by any switch */
        struct port *known = NULL;
        for (struct port *to = ports; to < ports + count; to++)
            if (to != from && memcmp(to->address, bytes, 6) == 0)
                known = to;
        for (struct port *to = ports; to < ports + count; to++)
            if (to != from && (known == NULL || known == to))
                queue(from, to, bytes, size, begun);
    }
    if (size < 0 && errno != EAGAIN && errno != EIO) /* EIO: the device is not up yet */
        fail("read");
}

static double deliver(double time) {
    double next = time + 1.0;
    for (struct port *to = ports; to < ports + count; to++) {
        for (struct frame *frame; (frame = to->first) != NULL && frame->due <= time;) {
            if (write(to->device, frame->bytes, frame->size) < 0 && errno != EIO)
                fail("write");
            to->first = frame->next;
            free(frame);
        }
        if (to->first != NULL && to->first->due < next)
            next = to->first->due;
    }
    return next;
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 3 + PORTS)
        return 2;
    rate = atof(argv[1]), delay = atof(argv[2]), count = argc - 3;
    struct pollfd polled[PORTS + 1] = {{.fd = 0, .events = POLLIN}};
    for (int i = 0; i < count; i++) {
        struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
        snprintf(request.ifr_name, IFNAMSIZ, "%s", argv[3 + i]);
        ports[i].device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
        if (ports[i].device < 0 || ioctl(ports[i].device, TUNSETIFF, &request) < 0)
            fail("/dev/net/tun");
        polled[i + 1] = (struct pollfd){.fd = ports[i].device, .events = POLLIN};
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        double wait = later(0.0, deliver(now()) - now());
        struct timespec left = {.tv_sec = (time_t)wait, .tv_nsec = (long)(1e9 * (wait - (time_t)wait))};
        if (ppoll(polled, count + 1, &left, NULL) < 0 && errno != EINTR)
            fail("ppoll");
        if (polled[0].revents != 0)
            return 0;
        for (int i = 0; i < count; i++)
            if (polled[i + 1].revents != 0)
                take(&ports[i]);
    }
}
