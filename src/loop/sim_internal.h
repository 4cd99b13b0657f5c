/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the simulator share. */
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
    SIM_KIND_TIMER,
    SIM_KIND_PAUSE,
    SIM_KIND_FILE,
    SIM_KIND_CONNECT,
    SIM_KIND_ACCEPT,
    SIM_KIND_ARRIVE,
    SIM_KIND_SEND,
    SIM_KIND_RECV,
    SIM_KIND_SHUTDOWN,
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

struct sim_host {
    char name[SIM_HOST_NAME_BYTES];
    char address[16]; /* as text: 10.0.0.1 and so on */
    struct sim *sim;
    struct list_link link;
    struct sim_inode *root;
    struct sim_space space;
    struct list faults; /* struct sim_fault_rule */
    uint64_t index;
    uint64_t inodes_made;
    unsigned clients_made;
    uint16_t next_port;
};

struct sim_loop {
    struct loop base;
    struct sim *sim;
    struct sim_host *host;
    struct list_link link;
    struct list posted;    /* struct loop_task */
    struct list files;     /* struct sim_file */
    struct list listeners; /* struct sim_sock */
    uint64_t index;
    uint64_t random_state; /* for loop_random(), apart from the world's choices */
    unsigned socks;        /* open ones, listeners too */
};

struct sim {
    struct sim_options options;
    struct list hosts;
    struct list loops;
    struct list conns;        /* struct sim_conn */
    struct list cuts;         /* struct sim_cut */
    struct sim_event *events; /* root of the heap */
    uint64_t now_ns;
    uint64_t random_state;
    uint64_t hash;
    uint64_t loops_made;
    uint64_t hosts_made;
    bool owned_by_loop; /* goes with its last loop: loop_sim_new() */
    bool hung;
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
void sim_trace(struct sim *sim, enum sim_kind kind, uint64_t a, uint64_t b, uint64_t c);
void sim_event_arm(struct sim *sim, struct sim_event *event, uint64_t delay_ns);
void sim_event_cancel(struct sim *sim, struct sim_event *event);
/* Suspends the running coroutine for as long in virtual time, as a request that is under way. Not to
 * be ended early. */
void sim_pause(struct sim_loop *loop, uint64_t delay_ns) MAY_WAIT;

/* sim_fs.c: names and inodes. */
enum sim_inode_kind { SIM_FOLDER, SIM_REGULAR, SIM_SOCKET };

struct sim_inode {
    enum sim_inode_kind kind;
    unsigned refs;       /* names and open files */
    uint64_t number;     /* for the trace */
    struct list entries; /* of a folder: struct sim_entry */
    /* What reads see. A volatile write cache would keep, beside these pages, those that were there
     * at the last sync, and a power cut would choose between them for each sector. */
    struct sim_pages pages;
    uint64_t length_bytes;
    struct list locks; /* struct sim_lock */
};

struct sim_entry {
    struct list_link link;
    struct sim_inode *inode;
    char name[];
};

int sim_fs_init(struct sim_host *host);
void sim_fs_deinit(struct sim_host *host);
void sim_inode_unref(struct sim_inode *inode);
/* -ENOENT, -ENOTDIR, -ENAMETOOLONG. No reference is taken. */
int sim_fs_find(struct sim_host *host, const char *path, struct sim_inode **ret_inode);
/* A new, empty inode under the name, with the one reference of the name; -EEXIST. */
int sim_fs_make(struct sim_host *host, const char *path, enum sim_inode_kind kind,
                struct sim_inode **ret_inode);
int sim_fs_make_folders(struct sim_host *host, const char *path);
int sim_fs_rename(struct sim_host *host, const char *from, const char *to);
/* Folders only when they are empty. */
int sim_fs_unlink(struct sim_host *host, const char *path);

/* sim_fault.c */
void sim_faults_drop(struct sim_host *host);
/* The error that a fault asks for, or 0. */
int sim_fault_check(struct sim_host *host, const char *path, enum sim_op op);

/* sim_sock.c */
bool sim_hosts_are_cut(struct sim *sim, const struct sim_host *a, const struct sim_host *b);
struct sim_host *sim_host_find(struct sim *sim, const char *name);
void sim_net_deinit(struct sim *sim);

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
int sim_file_usage(struct file *file, uint64_t *ret_bytes);
int sim_file_extent(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool *ret_data,
                    uint64_t *ret_length_bytes) MAY_WAIT;
int sim_file_lock(struct file *file, uint64_t byte, bool exclusive);
int sim_file_unlock(struct file *file, uint64_t byte);
int sim_file_lock_test(struct file *file, uint64_t byte, bool exclusive, bool *ret_locked);
int sim_path_rename(struct loop *loop, const char *from, const char *to) MAY_WAIT;
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
