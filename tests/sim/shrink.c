/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "shrink.h"

#include "base/log.h"
#include "fail_alloc.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct coverage *run_coverage;
static int tell_fd = STDOUT_FILENO;

static void tell_violation(struct world *world, const char *invariant, const char *text)
{
    dprintf(tell_fd, "%u\n%s\n%s\n", world->op, invariant, text);
    fflush(NULL);
    _exit(1);
}

static void tell_log(void *arg, enum log_level level, const char *subject, const char *text)
{
    world_note(arg, "log: %s %s: %s", log_level_name(level), subject, text);
}

uint64_t run_here(const struct history *history, FILE *trace, int fd, struct world_facts *ret_facts)
{
    static struct world world;
    static struct co_stacks *stacks; /* of all worlds of this process */
    const char *slow = getenv("BLOCKSTEP_TEST_SLOW");

    tell_fd = fd;
    world_on_violation = tell_violation;
    log_set_level(trace != NULL ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR);
    log_set_sink(tell_log, &world);
    alarm(RUN_SECONDS_MAX * (slow != NULL ? (unsigned)MAX(atoi(slow), 1) : 1));
    if (stacks == NULL)
        stacks = co_stacks_new();
    long live = fail_alloc_live();
    world_run(&world, history, stacks, trace, run_coverage);
    live = fail_alloc_live() - live;
    /* json-c forgets a key when the table that it is for cannot grow. */
    if (live != 0 && (history->strike.kind != STRIKE_MEMORY || live != 1))
        world_violation(&world, invariant_name(I9_BOUNDS),
                        "%ld allocations have not been freed at the end", live);
    alarm(0);
    if (ret_facts != NULL)
        *ret_facts = world.facts;
    return world.hash;
}

static void read_verdict(int fd, struct verdict *verdict)
{
    char text[VERDICT_TEXT_BYTES];
    size_t length = 0;
    ssize_t got;

    while (length < sizeof(text) - 1 &&
           (got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
        length += (size_t)got;
    text[length] = '\0';
    char *invariant = strchr(text, '\n');
    char *what = invariant != NULL ? strchr(invariant + 1, '\n') : NULL;
    if (what == NULL) {
        snprintf(verdict->text, sizeof(verdict->text), "%s", text);
        return;
    }
    *what = '\0';
    verdict->op = (unsigned)atoi(text);
    snprintf(verdict->invariant, sizeof(verdict->invariant), "%.150s", invariant + 1);
    snprintf(verdict->text, sizeof(verdict->text), "%s", what + 1);
}

void run_apart(const struct history *history, struct verdict *ret_verdict)
{
    int fds[2], status = 0;

    *ret_verdict = (struct verdict){.ok = false};
    fflush(NULL);
    if (pipe(fds) < 0)
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        close(fds[0]);
        dup2(fds[1], STDERR_FILENO);
        run_here(history, NULL, fds[1], NULL);
        _exit(0);
    }
    close(fds[1]);
    read_verdict(fds[0], ret_verdict);
    close(fds[0]);
    if (waitpid(pid, &status, 0) != pid)
        abort();
    ret_verdict->ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (WIFSIGNALED(status))
        snprintf(ret_verdict->invariant, sizeof(ret_verdict->invariant), "the process dies: %s",
                 WTERMSIG(status) == SIGALRM ? "endless loop" : strsignal(WTERMSIG(status)));
    else if (!ret_verdict->ok && ret_verdict->invariant[0] == '\0')
        snprintf(ret_verdict->invariant, sizeof(ret_verdict->invariant), "the process ends: %d",
                 WEXITSTATUS(status));
}

static void without(const struct history *from, unsigned at, unsigned count, struct history *to)
{
    *to = *from;
    memmove(to->ops + at, to->ops + at + count, (to->count - at - count) * sizeof(struct op));
    to->count -= count;
}

/* Smaller pieces are left out until none can be. */
void shrink(struct history *history, struct verdict *verdict)
{
    struct history *fewer = malloc(sizeof(*fewer));
    struct verdict *tried = malloc(sizeof(*tried));
    time_t until = time(NULL) + SHRINK_SECONDS_MAX;

    assert(fewer != NULL && tried != NULL);
    for (unsigned piece = MAX(history->count / 2, 1); piece > 0;) {
        bool smaller = false;
        for (unsigned at = 0; at + piece <= history->count && time(NULL) < until;) {
            without(history, at, piece, fewer);
            run_apart(fewer, tried);
            if (tried->ok || strcmp(tried->invariant, verdict->invariant) != 0) {
                at += piece;
                continue;
            }
            *history = *fewer;
            *verdict = *tried;
            smaller = true;
        }
        if (time(NULL) >= until || (piece == 1 && !smaller))
            break;
        piece = piece == 1 ? 1 : piece / 2;
    }
    free(fewer);
    free(tried);
}
