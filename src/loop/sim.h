/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The simulator behind loop.h: a world of hosts in one process, with virtual time, files and sockets
 * in memory, and every choice (how long something takes, what comes first, how many bytes arrive
 * together, what a power cut leaves) drawn from one seed. The same seed gives the same run, on every
 * machine, which sim_trace_hash() shows.
 *
 * A world has hosts, known by name. A host has a file system, which outlives the loops that run on
 * it (so a daemon can be "restarted"), and is reached over the network by its name. Each loop is one
 * process on a host. loop_run() on any of them runs the whole world until that loop is stopped.
 *
 * Everything here may be called from anywhere in the world's thread: from coroutines of any loop,
 * from hooks, and from outside; what may not says so. Nothing waits.
 *
 * For tests and the simulator's runner only; production code sees loop.h alone.
 */
#ifndef BLOCKSTEP_LOOP_SIM_H
#define BLOCKSTEP_LOOP_SIM_H

#include "loop/co.h"

struct sim;

#define SIM_BACKLOG_MAX     16u /* connections that wait to be accepted, for each listener */
#define SIM_HOST_NAME_BYTES 64u
#define SIM_HANG_TEXT_BYTES 4096u
#define SIM_LINE_BYTES      512u /* of a line of the trace */
#define SIM_UNIT_BYTES      512u /* what a power cut leaves whole or not at all */

/* How long something takes: uniformly between the two. Both 0: nothing is ever waited for. */
struct sim_delay {
    uint64_t min_ns, max_ns;
};

/* Called when the world cannot go on: `text` says why and what each loop's coroutines are. The run
 * ends when it returns: loop_run() returns as after loop_stop(), sim_step() returns false. */
typedef void sim_hang_handler(void *arg, const char *text);

struct sim_options {
    uint64_t seed;
    struct sim_delay file;     /* each request to a file or folder */
    struct sim_delay net;      /* each way over the network */
    struct sim_delay offload;  /* calls on the pool */
    struct sim_delay linger;   /* what is left of a killed process: see sim_process_kill() */
    unsigned inline_percent;   /* of file requests that end without waiting */
    unsigned split_percent;    /* of file requests on several pages that take effect in parts */
    size_t sock_buffer_bytes;  /* under way or not yet received, for each direction */
    uint64_t disk_bytes;       /* what the files of one host may take; 0: no limit */
    uint64_t limit_ns;         /* virtual time at which the run counts as hung; 0: none */
    bool files_in_memory;      /* what file_info() says */
    bool failed_sync_loses;    /* as on Linux: see "what a power cut leaves" */
    struct co_stacks *stacks;  /* of coroutines, shared by worlds that come one after the other; or
                                  NULL. As many are kept as the greatest world had alive. */
    sim_hang_handler *on_hang; /* NULL: logged as an error, then abort() */
    void *on_hang_arg;
};

/* Microseconds for files, tens of them for the network, 64 KiB buffers, no limits. */
void sim_options_init(struct sim_options *options, uint64_t seed);

int sim_new(const struct sim_options *options, struct sim **ret_sim, struct err *err);
/* All loops of the world have been freed (asserted). NULL is fine. */
void sim_free(struct sim *sim);

/* A new process on the host, which comes into being (or is powered on again) with it. */
int sim_loop_new(struct sim *sim, const char *host, struct loop **ret_loop, struct err *err);
/* The world of a loop of the simulator; NULL for one of the kernel. */
struct sim *sim_of(const struct loop *loop);

/* Lets the next thing happen. False: nothing can happen any more, of itself. */
bool sim_step(struct sim *sim);
uint64_t sim_now_ns(const struct sim *sim);
uint64_t sim_seed(const struct sim *sim);
/* A digest of all that has happened so far, and when. */
uint64_t sim_trace_hash(const struct sim *sim);
/* Moves options.limit_ns. */
void sim_set_limit(struct sim *sim, uint64_t limit_ns);
/* From the world's seed: for tests that want to be replayable with it. */
uint64_t sim_random(struct sim *sim);

/* Each event as a line of words from now on: time, host/process, what was asked, of what, and the
 * result. Costs nothing while there is no sink (NULL), and changes nothing in the run. */
typedef void sim_line_sink(void *arg, const char *line);
void sim_set_trace(struct sim *sim, sim_line_sink *sink, void *arg);
/* A line of the world's own: it goes to the sink, and into the digest. */
void sim_note(struct sim *sim, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* --- processes die, stop, and go on --- */

/*
 * The process dies as by SIGKILL. What reached the kernel stays. Of its requests to files that are
 * under way each part may still land, until the kernel has done with it: options.linger later at the
 * most, perhaps when its successor runs already. Until then its locks are held and its sockets stand,
 * read by nobody; then they close, as when a process ends.
 *
 * The loop becomes a ghost: cut off from files, sockets, clock and seed. Whatever its coroutines ask
 * for fails at once and has no effect, their deadlines pass at once, and so they run to their end
 * outside of the world's time, without a trace in its digest. This is how the memory of a process that
 * was killed comes back, how its leaks are still seen, and how its error paths are walked. The told
 * function (below) should make the program end; it runs in the loop, before the first ghostly turn,
 * and must not wait. Ghosts run before anything else in the world does; one that does not come to its
 * end is a hang.
 *
 * The loop on which loop_run() runs the world cannot be killed, only others (asserted). Killing a dead
 * one does nothing.
 */
void sim_process_kill(struct loop *loop);
void sim_process_on_death(struct loop *loop, void (*told)(void *arg), void *arg);
/* A ghost. Hooks into production code that note what a guest has seen must ask. */
bool sim_process_is_dead(const struct loop *loop);
/* Has run to its end: loop_free() is all that is left to do, from outside of all loops or from
 * another. */
bool sim_process_is_gone(const struct loop *loop);
/* Runs all ghosts to their end now. Not from within a ghost. */
void sim_bury(struct sim *sim);

/* As by SIGSTOP and SIGCONT: while stopped its code does not run and its timers do not fire; requests
 * to files that are under way go on, its sockets take bytes until they are full, and what it has sent
 * arrives. Afterwards it is as if no time had passed, but for the clock. */
void sim_process_stop(struct loop *loop);
void sim_process_continue(struct loop *loop);

/* --- power cuts --- */

/*
 * The host loses power: all its loops die at once (as ghosts, without any linger), its connections are
 * gone without notice to their peers, who hear nothing until it runs again and then a reset for what
 * they send (or -ETIMEDOUT, when their kernels give up: after a quarter of an hour for what they sent,
 * after two hours of silence). It is down until the next sim_loop_new() on it: nobody who connects is answered.
 *
 * What a power cut leaves of its files:
 * - what was written, zeroed, punched and not covered by a sync that took effect since: each unit of
 *   SIM_UNIT_BYTES as it was at the last sync, or as it is, or as it was at some moment between when it
 *   was written several times. Of requests under way any unit may have been written;
 * - the length of a file, likewise;
 * - names: creations, renames and unlinks in a folder since it was last synced have happened up to any
 *   one of them, in order, and the later ones not; a rename from one folder to another has happened in
 *   both or in none. Syncing a file does not make its name durable;
 * - /run, /tmp and /dev/shm are empty, and /proc/sys/kernel/random/boot_id reads anew;
 * - with options.failed_sync_loses, a sync that failed has thrown away the memory of what was not
 *   durable: reads see it until the power cut, later syncs do not write it, only writing it again
 *   does.
 * All choices are the seed's, unless there is a chooser. Power cuts of a host that is down do nothing.
 */
int sim_host_power_cut(struct sim *sim, const char *host); /* -ENOENT: no such host */
bool sim_host_is_up(struct sim *sim, const char *host);

enum sim_choice {
    SIM_CHOICE_LANDS,  /* a unit of a request under way when the power or the process went */
    SIM_CHOICE_UNIT,   /* a unit not yet durable is as written */
    SIM_CHOICE_LENGTH, /* a file has its new length */
    SIM_CHOICE_NAME,   /* a change of a folder has happened */
};
struct sim_choice_info {
    enum sim_choice choice;
    const char *host;
    const char *name; /* of the file or the entry, as last opened or made; without folders */
    uint64_t inode;   /* a number that names the file within the host */
    uint64_t offset_bytes;
    unsigned
        age; /* SIM_CHOICE_UNIT: 0 as it was written last, 1 as before that (and not as last) */
};
/*
 * Makes the choices in place of the seed, in an order that one run always has, so that all outcomes of
 * a cut can be gone through. What nobody can see is not asked: a unit is asked about when it is first
 * read after the cut (and not when it is written over before, or was the same all the time), a length
 * when the file is opened. Of a file that grew, the length is the new one or that of the last sync.
 * Must not do anything but answer. Set before anything happens, and for good.
 */
typedef bool sim_chooser(void *arg, const struct sim_choice_info *info);
void sim_set_chooser(struct sim *sim, sim_chooser *chooser, void *arg);

/* --- faults of disks --- */

enum sim_op {
    SIM_OP_ANY,
    SIM_OP_OPEN,
    SIM_OP_READ,
    SIM_OP_WRITE,
    SIM_OP_SYNC,
    SIM_OP_ZERO, /* punch too */
    SIM_OP_TRUNCATE,
    SIM_OP_EXTENT,
    SIM_OP_RENAME, /* by the old name */
    SIM_OP_UNLINK,
    SIM_OP_FOLDER,      /* make one */
    SIM_OP_SYNC_FOLDER, /* by the folder's path */
};
const char *sim_op_name(enum sim_op op);

#define SIM_STALL_FOR_EVER UINT64_MAX

/* Strikes requests to files of one host: the `nth` that fits and `times - 1` more after it, or, with
 * per_million, of those each with that probability. */
struct sim_fault {
    const char *path; /* as the request has it; "/a/b*": all that begin so; NULL: all */
    enum sim_op op;
    unsigned nth;                        /* 1 (or 0): the next */
    unsigned times;                      /* UINT_MAX (or 0): all from then on */
    unsigned per_million;                /* 0: each */
    uint64_t offset_bytes, length_bytes; /* requests that touch this range; length 0: all */
    int error;         /* what it fails with, negative errno, without effect; 0: it does not */
    uint64_t stall_ns; /* before that, it is not answered for so long, or until cleared */
};
/* 0 or -ENOMEM, or -ENOENT for an unknown host. Faults are asked in the order of their making; the
 * first that strikes decides. */
int sim_fault_add(struct sim *sim, const char *host, const struct sim_fault *fault);
/* Takes away all faults of the host; what they stalled goes on. */
void sim_fault_clear(struct sim *sim, const char *host);
/* Reads of these sectors fail with -EIO until they have been written or zeroed as a whole. The
 * range is rounded to whole units. -ENOENT, -ENOMEM. */
int sim_bad_sectors(struct sim *sim, const char *host, const char *path, uint64_t offset_bytes,
                    uint64_t length_bytes);
/* All sectors of the file can be read again. -ENOENT. */
int sim_mend_sectors(struct sim *sim, const char *host, const char *path);
/* Changes what the files of a host may take, even to less than they do; 0: no limit. */
void sim_disk_limit(struct sim *sim, const char *host, uint64_t bytes);
uint64_t sim_disk_used_bytes(struct sim *sim, const char *host);

/* Called before each request to a file or folder takes effect, and after it, before its caller knows.
 * A negative errno makes it fail (before the effect, without it). It must not wait, but may kill and cut
 * power, also of the process that asked: so each moment of each request can be the last. */
enum sim_moment { SIM_BEFORE, SIM_AFTER };
struct sim_request_info {
    struct loop *loop;
    const char *host;
    const char *path;
    enum sim_op op;
    enum sim_moment moment;
    uint64_t offset_bytes, length_bytes;
    uint64_t number; /* of this host's requests, from 1 */
    int result;      /* SIM_AFTER: a negative errno when it has failed */
};
typedef int sim_request_hook(void *arg, const struct sim_request_info *info);
void sim_set_request_hook(struct sim *sim, sim_request_hook *hook, void *arg);

/* --- faults of the network --- */

/* One way from a host to another, or to itself (unix sockets and loopback). */
struct sim_link_options {
    struct sim_delay delay;     /* both 0: options.net */
    bool blocked;               /* nothing travels: neither bytes nor what acknowledges those of the
                               other way, so that both stall in the end; what is under way arrives
                               when it is opened again; connects are not answered */
    unsigned break_per_million; /* arrivals in which the connection breaks, at any byte */
    unsigned refuse_percent;    /* of connects, though somebody listens */
};
/* -ENOENT for an unknown host. Hosts come into being with their first loop. */
int sim_link_set(struct sim *sim, const char *from, const char *to,
                 const struct sim_link_options *options);
/* Both ways blocked, or open; other options stay. -EINVAL for an unknown host or twice the same. */
int sim_net_cut(struct sim *sim, const char *host_a, const char *host_b, bool cut);
/* Of what travels this way from now on `bytes` bytes more arrive, all connections counted together;
 * then the connection which would carry the next breaks. */
int sim_link_break_after(struct sim *sim, const char *from, const char *to, uint64_t bytes);

enum sim_side { SIM_SIDE_BOTH, SIM_SIDE_FROM, SIM_SIDE_TO };
/* Breaks all connections from a host (who connected) to another: those at the given side hear of it
 * (-ECONNRESET), the others do not until they send: half-open. */
int sim_link_break(struct sim *sim, const char *from, const char *to, enum sim_side side);

#endif
