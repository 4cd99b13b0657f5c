/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the parts of the simulator share. What the kernel would keep (handles, requests, connections,
 * listeners) belongs to the host; what the program holds points to it, and to nothing once the process
 * is dead.
 */
#ifndef BLOCKSTEP_LOOP_SIM_INTERNAL_H
#define BLOCKSTEP_LOOP_SIM_INTERNAL_H

#include "loop/loop_internal.h"
#include "loop/sim.h"
#include "loop/sim_pages.h"

#define SIM_PORT_MIN 40000 /* for listeners on port 0 */
#define SIM_PORT_MAX 49999

/* What the trace hash tells events apart by; never renumber without need. */
enum sim_kind {
    SIM_KIND_TURN = 1,
    SIM_KIND_PICK,
    SIM_KIND_PAUSE = 4,
    SIM_KIND_FILE,
    SIM_KIND_CONNECT,
    SIM_KIND_ACCEPT,
    SIM_KIND_ARRIVE,
    SIM_KIND_SEND,
    SIM_KIND_RECV,
    SIM_KIND_SHUTDOWN,
    SIM_KIND_PROCESS,
    SIM_KIND_POWER,
    SIM_KIND_LAND,
    SIM_KIND_LINK,
    SIM_KIND_NOTE,
};

/* Something that will happen. Lives in what it happens to; a pairing heap keeps the order. */
struct sim_event {
    struct sim_event *child, *next, *prev;
    uint64_t time_ns;
    uint64_t tie; /* seeded: the order of what happens at one time */
    bool armed;
    void (*fire)(struct sim_event *event);
};

struct sim_inode;
struct sim_sock;

struct sim_host {
    char name[SIM_HOST_NAME_BYTES];
    char address[16]; /* as text: 10.0.0.1 and so on */
    struct sim *sim;
    struct list_link link;
    struct sim_inode *root;
    struct sim_space space;
    struct list inodes;    /* struct sim_inode, by number */
    struct list changes;   /* struct sim_change: of names, not yet durable */
    struct list faults;    /* struct sim_fault_rule */
    struct list listeners; /* struct sim_listener */
    struct list remains;   /* struct sim_remains */
    unsigned change_count;
    uint64_t index;
    uint64_t inodes_made;
    uint64_t requests_made;
    unsigned clients_made;
    uint16_t next_port;
    bool down;
};

/* A process: its sockets, its handles, and what its coroutines wait for. */
struct sim_loop {
    struct loop base;
    struct sim *sim;
    struct sim_host *host;
    struct list_link link;
    struct list posted;   /* struct loop_task */
    struct list sleepers; /* struct sim_sleeper */
    struct list requests; /* struct sim_request */
    struct list handles;  /* struct sim_handle */
    struct list socks;    /* struct sim_sock */
    uint64_t index;
    uint64_t random_state; /* for loop_random(), apart from the world's choices */
    unsigned files;        /* open ones */
    bool stopped;
    bool dead;
    bool gone;         /* and has run to its end, */
    bool stuck;        /* or did not come to it */
    uint64_t ghost_ns; /* what a dead one takes for the time */
    void (*told)(void *arg);
    void *told_arg;
};

struct sim {
    struct sim_options options;
    struct list hosts;
    struct list loops;
    struct list conns;        /* struct sim_conn */
    struct list links;        /* struct sim_link */
    struct sim_event *events; /* root of the heap */
    uint64_t now_ns;
    uint64_t random_state;
    uint64_t hash;
    uint64_t loops_made;
    uint64_t hosts_made;
    unsigned ghosts;    /* dead loops that have not run to their end */
    bool owned_by_loop; /* goes with its last loop: loop_sim_new() */
    bool hung;
    sim_line_sink *sink;
    void *sink_arg;
    sim_chooser *chooser;
    void *chooser_arg;
    sim_request_hook *hook;
    void *hook_arg;
};

static inline struct sim_loop *sim_loop_of(const struct loop *loop)
{
    return CONTAINER_OF(loop, struct sim_loop, base);
}

/* loop_sim.c */
bool sim_chance(struct sim *sim, unsigned percent);
/* From 0 to limit - 1. */
uint64_t sim_below(struct sim *sim, uint64_t limit);
uint64_t sim_delay_ns(struct sim *sim, struct sim_delay delay);
/* Suspends the running coroutine for as long in virtual time, as a call that is under way. Ends early
 * only with the process. */
void sim_pause(struct sim_loop *loop, uint64_t delay_ns) MAY_WAIT;
/* For a while that the seed draws; the dead do not draw. */
void sim_pause_some(struct sim_loop *loop, struct sim_delay delay) MAY_WAIT;
/* What the dead ask for fails at once, but lets others run: who asks again and again must not keep his
 * loop from being told that it is dead. Nothing for the living. */
void sim_ghost_yield(const struct sim_loop *loop) MAY_WAIT;
/* Ends all pauses of the loop, which is dead. */
void sim_pauses_end(struct sim_loop *loop);
/* A turn of a loop without its wait, which the world does for all. */
void sim_loop_turn(struct sim_loop *loop);
bool sim_loop_has_work(const struct sim_loop *loop);
/* Says who waits, to on_hang or the log. */
void sim_hang(struct sim *sim, const char *reason);
struct sim_host *sim_host_find(struct sim *sim, const char *name);

/* sim_event.c */
void sim_event_arm(struct sim *sim, struct sim_event *event, uint64_t delay_ns);
void sim_event_cancel(struct sim *sim, struct sim_event *event);

/* sim_trace.c: the seed and the digest */
uint64_t sim_mix(uint64_t bits);
uint64_t sim_random_from(uint64_t *state); /* splitmix64 */
void sim_trace(struct sim *sim, enum sim_kind kind, uint64_t a, uint64_t b, uint64_t c);
/* A line for the sink, if there is one, without any in the digest. `loop` may be NULL. */
#define sim_tell(sim_, host_, loop_, ...)                         \
    do {                                                          \
        if (__builtin_expect((sim_)->sink != NULL, false))        \
            sim_tell_line((sim_), (host_), (loop_), __VA_ARGS__); \
    } while (0)
void sim_tell_line(struct sim *sim, const struct sim_host *host, const struct sim_loop *loop,
                   const char *fmt, ...) PRINTF_LIKE(4, 5);

/* --- names and inodes: sim_fs.c --- */

enum sim_inode_kind { SIM_FOLDER, SIM_REGULAR, SIM_SOCKET };

struct sim_inode {
    enum sim_inode_kind kind;
    struct sim_host *host;
    struct list_link link; /* host->inodes */
    unsigned refs;         /* names, handles, changes, requests that land */
    unsigned uses;         /* of these, names and handles: while any, its pages count as space */
    uint64_t number;       /* for the trace */
    struct list entries;   /* of a folder: struct sim_entry */
    struct sim_pages pages;
    uint64_t length_bytes;
    uint64_t stable_bytes; /* its length at the last sync */
    uint64_t least_bytes;  /* the shortest that it has been since */
    uint64_t other_bytes;  /* what its length may be instead, when a power cut has left it open */
    bool length_open;
    char name[32];     /* the first that it had, perhaps cut off; for people */
    struct list locks; /* struct sim_lock */
};

struct sim_entry {
    struct list_link link;
    struct sim_inode *inode;
    char name[];
};

int sim_fs_init(struct sim_host *host);
void sim_fs_deinit(struct sim_host *host);
struct sim_inode *sim_inode_ref(struct sim_inode *inode);
void sim_inode_unref(struct sim_inode *inode);
/* The same, for a handle. */
void sim_inode_use(struct sim_inode *inode);
void sim_inode_unuse(struct sim_inode *inode);
/* -ENOENT, -ENOTDIR, -ENAMETOOLONG. No reference is taken. */
int sim_fs_find(struct sim_host *host, const char *path, struct sim_inode **ret_inode);
/* A new, empty inode under the name, with the one reference of the name; -EEXIST. */
int sim_fs_make(struct sim_host *host, const char *path, enum sim_inode_kind kind,
                struct sim_inode **ret_inode);
int sim_fs_make_folders(struct sim_host *host, const char *path);
int sim_fs_rename(struct sim_host *host, const char *from, const char *to, bool exchange);
/* Folders only when they are empty. */
int sim_fs_unlink(struct sim_host *host, const char *path);
/* What has changed in the folder is durable. -ENOTDIR. */
int sim_fs_sync_folder(struct sim_host *host, const char *path);
/* The names that a power cut leaves. */
void sim_fs_cut(struct sim_host *host);

/* --- files as the kernel keeps them: sim_request.c --- */

struct sim_file;
struct sim_remains;

struct sim_handle {
    struct list_link link; /* of the loop, or of what remains of it */
    struct sim_inode *inode;
    struct sim_file *file; /* NULL once nobody has it */
};
struct sim_handle *sim_handle_new(struct sim_loop *loop, struct sim_inode *inode);
/* Drops its locks. */
void sim_handle_free(struct sim_handle *handle);

enum sim_phase { SIM_SUBMITTED, SIM_STALLED, SIM_EFFECT, SIM_SETTLING, SIM_DONE };

/* Under way. Lives on the stack of the coroutine that waits for it; those that a dead process has left
 * live by themselves. */
struct sim_request {
    struct sim_event event;
    struct list_link link; /* of the loop, or of what remains of it */
    struct sim_host *host;
    struct sim_loop *loop; /* NULL: the process is dead */
    struct co *waiter;
    enum sim_op op;
    enum sim_phase phase;
    const char *path;
    const char *new_path;      /* of a rename */
    bool exchange;             /* both names stay */
    struct sim_inode *inode;   /* of a file's request */
    struct sim_handle *handle; /* opened */
    uint64_t offset_bytes, length_bytes, done_bytes;
    uint64_t number;
    uint64_t after_ns; /* from the effect to its caller's knowing */
    uint8_t *bytes;    /* to read into */
    struct iovec *iov; /* to write */
    int iov_count;
    unsigned flags; /* to open with */
    bool split, punch, may_unmap;
    bool data; /* found, with length_bytes as its extent */
    int result;
};
/* Returns when it is done; its result. -EIO when the process is dead. */
int sim_request_run(struct sim_loop *loop, struct sim_request *request) MAY_WAIT;
/* All of the loop, which is dead: what may land later goes to `remains`, or lands now when that is
 * NULL. */
void sim_requests_abandon(struct sim_loop *loop, struct sim_remains *remains);
/* One that has been left; both free it. */
void sim_request_land(struct sim_request *request);
void sim_request_drop(struct sim_request *request);
void sim_inode_truncate(struct sim_inode *inode, uint64_t length_bytes);
/* Faults have been cleared. */
void sim_requests_unstall(struct sim_host *host);

/* sim_fault.c */
void sim_faults_drop(struct sim_host *host);
/* The error that a fault asks for, or 0; and how long it stalls before. */
int sim_fault_check(const struct sim_request *request, uint64_t *ret_stall_ns);

/* --- what a killed process leaves for a while: sim_process.c --- */

struct sim_remains {
    struct sim_event event;
    struct list_link link; /* host->remains */
    struct sim_host *host;
    uint64_t end_ns;
    struct list handles;   /* struct sim_handle */
    struct list requests;  /* struct sim_request */
    struct list ends;      /* struct sim_end: of connections */
    struct list listeners; /* struct sim_listener */
};
/* With or without its requests landing. */
void sim_remains_end(struct sim_remains *remains, bool lands);
/* Dead from now on, all at once. Without remains: its sockets vanish. */
void sim_process_end(struct sim_loop *loop, struct sim_remains *remains);
void sim_run_ghosts(struct sim *sim);

/* --- power cuts: sim_cut.c --- */

/* How likely the seed's choices are, for a while: now all, now none, now some. */
struct sim_luck {
    struct sim *sim;
    unsigned percent;
    bool in_order; /* the first that does not, ends it */
    bool over;
};
void sim_host_power_on(struct sim_host *host);
/* What a power cut has left open, to the chooser: struct sim_space's, */
bool sim_unit_ask(const struct sim_pages *pages, uint64_t offset_bytes, unsigned age);
/* and the length of a file that is opened. */
void sim_length_decide(struct sim_inode *inode);
void sim_luck_draw(struct sim *sim, struct sim_luck *ret_luck);
bool sim_choose(struct sim_luck *luck, const struct sim_choice_info *info);

/* --- sockets: sim_sock.c, sim_conn.c, sim_link.c --- */

/* What has stalled goes on, or stalls, as the links and hosts now are. */
void sim_conns_review(struct sim *sim);
/* The sockets of a loop that is dead go to what remains of it, or vanish when that is NULL. */
void sim_socks_abandon(struct sim_loop *loop, struct sim_remains *remains);
/* What remains of them closes. */
void sim_socks_end(struct sim_remains *remains);
void sim_net_deinit(struct sim *sim);
void sim_links_deinit(struct sim *sim);

/* The hooks of sim_file.c and sim_sock.c, for the table in loop_sim.c. */
int sim_file_open(struct loop *loop, const char *path, unsigned flags, enum file_aio aio,
                  struct file **ret_file, struct err *err) MAY_WAIT;
void sim_file_close(struct file *file) MAY_WAIT;
ssize_t sim_file_read(struct file *file, void *bytes, size_t length_bytes, uint64_t offset_bytes)
    MAY_WAIT;
int sim_file_writev(struct file *file, struct iovec *iov, int count, uint64_t offset_bytes)
    MAY_WAIT;
int sim_file_sync(struct file *file) MAY_WAIT;
int sim_file_zero(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool punch,
                  bool may_unmap) MAY_WAIT;
int sim_file_truncate(struct file *file, uint64_t length_bytes) MAY_WAIT;
int sim_file_stat(struct file *file, struct file_stat *ret_stat);
int sim_file_extent(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool *ret_data,
                    uint64_t *ret_length_bytes) MAY_WAIT;
int sim_file_lock(struct file *file, uint64_t byte, bool exclusive);
int sim_file_unlock(struct file *file, uint64_t byte);
int sim_file_lock_test(struct file *file, uint64_t byte, bool exclusive, bool *ret_locked);
/* The process is dead: the program's side of an open file. */
void sim_file_detach(struct sim_file *file);
void sim_locks_drop(struct sim_handle *handle);
int sim_path_rename(struct loop *loop, const char *from, const char *to, bool exchange) MAY_WAIT;
int sim_path_unlink(struct loop *loop, const char *path) MAY_WAIT;
int sim_path_sync_folder(struct loop *loop, const char *folder) MAY_WAIT;
int sim_path_make_folder(struct loop *loop, const char *folder, unsigned mode) MAY_WAIT;
bool sim_path_exists(struct loop *loop, const char *path) MAY_WAIT;

int sim_sock_listen(struct loop *loop, const struct sock_address *address,
                    struct sock **ret_listener, struct err *err) MAY_WAIT;
int sim_sock_connect(struct loop *loop, const struct sock_address *address, uint64_t deadline_ns,
                     struct sock **ret_sock, struct err *err) MAY_WAIT;
int sim_sock_accept(struct sock *listener, struct sock **ret_sock) MAY_WAIT;
ssize_t sim_sock_recv(struct sock *sock, void *bytes, size_t length_bytes) MAY_WAIT;
int sim_sock_send(struct sock *sock, struct iovec *iov, int count) MAY_WAIT;
ssize_t sim_sock_send_now(struct sock *sock, const struct iovec *iov, int count);
void sim_sock_shutdown(struct sock *sock);
void sim_sock_close(struct sock *sock);

#endif
