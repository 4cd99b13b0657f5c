/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What goes wrong with a host's disks on request: faults by path and kind, and how much they take. */
#include "loop/sim_internal.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

struct sim_fault_rule {
    struct list_link link;
    struct sim_fault fault; /* its path is `path` */
    unsigned skip;          /* requests that pass before it strikes */
    char path[];
};

const char *sim_op_name(enum sim_op op)
{
    static const char *const names[] = {
        [SIM_OP_ANY] = "any",           [SIM_OP_OPEN] = "open",
        [SIM_OP_READ] = "read",         [SIM_OP_WRITE] = "write",
        [SIM_OP_SYNC] = "sync",         [SIM_OP_ZERO] = "zero",
        [SIM_OP_TRUNCATE] = "truncate", [SIM_OP_EXTENT] = "extent",
        [SIM_OP_RENAME] = "rename",     [SIM_OP_UNLINK] = "unlink",
        [SIM_OP_FOLDER] = "mkdir",      [SIM_OP_SYNC_FOLDER] = "sync-folder",
    };
    return names[op];
}

int sim_fault_add(struct sim *sim, const char *host_name, const struct sim_fault *fault)
{
    const char *path = fault->path != NULL ? fault->path : "*";
    struct sim_host *host = sim_host_find(sim, host_name);

    assert(fault->error <= 0);
    assert(fault->per_million <= 1000000);
    if (host == NULL)
        return -ENOENT;
    struct sim_fault_rule *rule = calloc(1, sizeof(*rule) + strlen(path) + 1);
    if (rule == NULL)
        return -ENOMEM;
    rule->fault = *fault;
    memcpy(rule->path, path, strlen(path));
    rule->fault.path = rule->path;
    rule->fault.times = fault->times != 0 ? fault->times : UINT_MAX;
    rule->skip = fault->nth > 0 ? fault->nth - 1 : 0;
    list_push_back(&host->faults, &rule->link);
    return 0;
}

void sim_faults_drop(struct sim_host *host)
{
    LIST_FOR_EACH_SAFE(rule, &host->faults, struct sim_fault_rule, link) {
        list_remove(&rule->link);
        free(rule);
    }
}

void sim_fault_clear(struct sim *sim, const char *host_name)
{
    struct sim_host *host = sim_host_find(sim, host_name);

    if (host == NULL)
        return;
    sim_faults_drop(host);
    sim_requests_unstall(host);
}

static bool sim_fault_fits(const struct sim_fault_rule *rule, const struct sim_request *request)
{
    const struct sim_fault *fault = &rule->fault;
    const char *path = request->path;
    size_t length = strlen(rule->path);

    if (fault->op != SIM_OP_ANY && fault->op != request->op)
        return false;
    if (fault->length_bytes > 0 &&
        (request->offset_bytes >= fault->offset_bytes + fault->length_bytes ||
         fault->offset_bytes >= request->offset_bytes + request->length_bytes))
        return false;
    if (length > 0 && rule->path[length - 1] == '*')
        return strncmp(rule->path, path, length - 1) == 0;
    return strcmp(rule->path, path) == 0;
}

static bool sim_fault_strikes(struct sim *sim, struct sim_fault_rule *rule)
{
    if (rule->skip > 0) {
        rule->skip--;
        return false;
    }
    return rule->fault.per_million == 0 || sim_below(sim, 1000000) < rule->fault.per_million;
}

int sim_fault_check(const struct sim_request *request, uint64_t *ret_stall_ns)
{
    struct sim_host *host = request->host;

    *ret_stall_ns = 0;
    LIST_FOR_EACH(rule, &host->faults, struct sim_fault_rule, link) {
        struct sim_fault *fault = &rule->fault;
        if (!sim_fault_fits(rule, request) || !sim_fault_strikes(host->sim, rule))
            continue;
        int error = fault->error;
        *ret_stall_ns = fault->stall_ns;
        if (fault->times != UINT_MAX && --fault->times == 0) {
            list_remove(&rule->link);
            free(rule);
        }
        return error;
    }
    return 0;
}

int sim_bad_sectors(struct sim *sim, const char *host_name, const char *path, uint64_t offset_bytes,
                    uint64_t length_bytes)
{
    struct sim_host *host = sim_host_find(sim, host_name);
    struct sim_inode *inode;

    int result = host != NULL ? sim_fs_find(host, path, &inode) : -ENOENT;
    if (result < 0)
        return result;
    sim_tell(sim, host, NULL, "bad sectors in %s %llu+%llu", path, (unsigned long long)offset_bytes,
             (unsigned long long)length_bytes);
    return sim_pages_spoil(&inode->pages, offset_bytes, length_bytes);
}

int sim_mend_sectors(struct sim *sim, const char *host_name, const char *path)
{
    struct sim_host *host = sim_host_find(sim, host_name);
    struct sim_inode *inode;

    int result = host != NULL ? sim_fs_find(host, path, &inode) : -ENOENT;
    if (result == 0)
        sim_pages_mend(&inode->pages);
    return result;
}

void sim_set_request_hook(struct sim *sim, sim_request_hook *hook, void *arg)
{
    sim->hook = hook;
    sim->hook_arg = arg;
}

void sim_disk_limit(struct sim *sim, const char *host_name, uint64_t bytes)
{
    struct sim_host *host = sim_host_find(sim, host_name);

    assert(host != NULL);
    host->space.limit_bytes = bytes;
}

uint64_t sim_disk_used_bytes(struct sim *sim, const char *host_name)
{
    const struct sim_host *host = sim_host_find(sim, host_name);

    return host != NULL ? host->space.used_bytes : 0;
}
