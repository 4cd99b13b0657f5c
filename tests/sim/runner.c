/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep-sim: histories of a simulated pair, by seed. docs/simulator.md is its manual. */
#include "oracle.h"
#include "shrink.h"
#include "systematic.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS_MAX            64u
#define REPORT_EVERY           1000u
#define REPORT_EVERY_WORKLOADS 50u
/* Round the coverage table, before an empty cell counts. */
#define COVER_ROUNDS_MIN       3u

struct worker {
    pid_t pid;
    int fd;
    uint64_t next; /* the seed it is at */
};

struct run {
    uint64_t first, last;
    unsigned workers;
    const char *state_path;
    time_t began, until; /* until 0: all seeds */
    unsigned systematic; /* most operations of its workloads; 0: histories by seed */
    bool hashes;
    struct worker all[WORKERS_MAX];
    struct history *histories; /* that the workers are at; shared with them */
    uint64_t done;
    struct coverage *coverage; /* of each worker, in memory that all share; NULL: not wanted */
    bool wants_coverage, json, covers_all;
    struct tally tally;
};

static void print_help(void)
{
    printf(
        "usage: blockstep-sim [--seed N | --seeds A..B | --minutes M | --systematic N | --scenario NAME |\n"
        "                      --history FILE]... [OPTION...]\n\n"
        "Runs histories of a simulated pair and checks the invariants of its data.\n\n"
        "      --seed N          the history of one seed; prints its trace's hash\n"
        "      --seeds A..B      all of these\n"
        "      --minutes M       fresh seeds for so long\n"
        "      --systematic N    each workload of up to N operations, with everything that can befall a\n"
        "                        host: deaths and all their outcomes, errors, memory that is out\n"
        "      --scenario NAME   one that is written down:\n");
    history_scenarios_print(stdout);
    printf(
        "      --history FILE    one that was printed (- is standard input)\n"
        "      --print           prints the history instead of running it\n"
        "      --trace           tells all that happens (of one history)\n"
        "      --hashes          a line for each seed of --seeds with its trace's hash\n"
        "      --state FILE      --seeds: goes on where the run before stopped\n"
        "      --no-shrink       does not look for the fewest operations\n"
        "      --coverage[=json] many seeds: tells which stage x call x fault cells they visit\n"
        "      --covers-all      the same, and fails when one is empty that can be visited, after enough\n"
        "                        seeds\n"
        "  -j, --jobs N          so many processes (default 1)\n"
        "      --invariants      tells what is checked\n"
        "  -h, --help\n\n"
        "Exit status: 0 all went well, 1 something was violated, 2 wrong usage.\n");
}

static void print_invariants(void)
{
    for (unsigned i = 0; i < INVARIANT_COUNT; i++)
        printf("%s%s%s\n", invariant_name(i), invariant_off(i) != NULL ? "\n    not yet: " : "",
               invariant_off(i) != NULL ? invariant_off(i) : "");
}

/* --- a failure --- */

static void report(struct history *history, bool shrinks)
{
    struct verdict *verdict = malloc(sizeof(*verdict));
    unsigned before = history->count;

    if (verdict == NULL)
        abort();
    run_apart(history, verdict);
    if (verdict->ok) {
        printf("VIOLATED by seed %" PRIu64 ": one run is like the other; alone it does not fail "
               "again, so it used memory of a world before\n",
               history->seed);
        free(verdict);
        return;
    }
    printf("\nVIOLATED by seed %" PRIu64 ": %s\n%s\n", history->seed, verdict->invariant,
           verdict->text);
    fflush(stdout);
    if (shrinks) {
        shrink(history, verdict);
        printf("%u of its %u operations do it, in operation %u:\n%s\n%s\n\n", history->count,
               before, verdict->op, verdict->invariant, verdict->text);
    }
    history_print(history, stdout);
    printf("\nAll of it: blockstep-sim --seed %" PRIu64
           " --trace. These operations: save them, then --history FILE --trace.\n",
           history->seed);
    free(verdict);
}

/* --- one history --- */

static int run_one(struct history *history, bool trace, bool shrinks)
{
    struct verdict *verdict;

    if (trace) {
        printf("%" PRIx64 "\n", run_here(history, stdout, STDOUT_FILENO, NULL));
        return EXIT_SUCCESS;
    }
    verdict = malloc(sizeof(*verdict));
    if (verdict == NULL)
        abort();
    run_apart(history, verdict);
    bool ok = verdict->ok;
    free(verdict);
    if (!ok) {
        report(history, shrinks);
        return EXIT_FAILURE;
    }
    printf("seed %" PRIu64 ": %" PRIx64 "\n", history->seed,
           run_here(history, NULL, STDOUT_FILENO, NULL));
    return EXIT_SUCCESS;
}

/* --- many seeds --- */

struct done {
    uint64_t seed, hash;
    struct tally tally; /* systematic */
};

static uint64_t run_quietly(const struct history *history, struct world_facts *ret_facts)
{
    return run_here(history, NULL, STDERR_FILENO, ret_facts);
}

static struct done work_one(const struct run *run, uint64_t seed, struct history *history)
{
    struct done done = {.seed = seed};

    if (run->systematic == 0) {
        history_from_seed(history, seed);
        done.hash = run_quietly(history, NULL);
        return done;
    }
    if (!systematic_workload(history, seed, run->systematic))
        exit(0);
    systematic_run(history, &done.tally, run_quietly);
    done.hash = done.tally.hash;
    return done;
}

static void work(const struct run *run, unsigned index, int fd)
{
    struct history *history = &run->histories[index];

    run_coverage = run->coverage != NULL ? &run->coverage[index] : NULL;
    for (uint64_t seed = run->first + index; seed <= run->last; seed += run->workers) {
        if (run->until != 0 && time(NULL) >= run->until)
            break;
        struct done done = work_one(run, seed, history);
        if (write(fd, &done, sizeof(done)) != (ssize_t)sizeof(done))
            _exit(2);
    }
    /* Not _exit(): leaks are looked for at the end. */
    exit(0);
}

static void workers_start(struct run *run)
{
    fflush(NULL);
    for (unsigned i = 0; i < run->workers; i++) {
        int fds[2];
        if (pipe(fds) < 0)
            abort();
        run->all[i] = (struct worker){.fd = fds[0], .next = run->first + i};
        run->all[i].pid = fork();
        if (run->all[i].pid == 0) {
            for (unsigned k = 0; k <= i; k++)
                close(run->all[k].fd);
            work(run, i, fds[1]);
        }
        close(fds[1]);
    }
}

static void state_save(const struct run *run)
{
    uint64_t next = UINT64_MAX;
    FILE *file;

    if (run->state_path == NULL)
        return;
    for (unsigned i = 0; i < run->workers; i++)
        next = MIN(next, run->all[i].next);
    file = fopen(run->state_path, "w");
    if (file == NULL || fprintf(file, "%" PRIu64 "\n", next) < 0 || fclose(file) != 0)
        fprintf(stderr, "blockstep-sim: cannot write %s: %s\n", run->state_path, strerror(errno));
}

static void state_load(struct run *run)
{
    uint64_t next;
    FILE *file = run->state_path != NULL ? fopen(run->state_path, "r") : NULL;

    if (file == NULL)
        return;
    if (fscanf(file, "%" SCNu64, &next) == 1 && next > run->first)
        run->first = next;
    fclose(file);
}

static void tell_progress(struct run *run)
{
    double seconds = (double)(time(NULL) - run->began);

    printf("%" PRIu64 "%s since %" PRIu64 ", %.0f s, %.0f a minute\n", run->done,
           run->systematic > 0 ? " workloads" : " seeds", run->first, seconds,
           seconds > 0 ? (double)run->done * 60 / seconds : 0);
    if (run->systematic > 0)
        tally_print(&run->tally, stdout);
    fflush(stdout);
    state_save(run);
}

/* False: the worker has ended. */
static bool worker_read(struct run *run, struct worker *worker)
{
    struct done done;

    if (read(worker->fd, &done, sizeof(done)) != (ssize_t)sizeof(done))
        return false;
    if (run->hashes)
        printf("%" PRIu64 " %" PRIx64 "\n", done.seed, done.hash), fflush(stdout);
    worker->next = done.seed + run->workers;
    tally_add(&run->tally, &done.tally);
    if (++run->done % (run->systematic > 0 ? REPORT_EVERY_WORKLOADS : REPORT_EVERY) == 0 &&
        !run->hashes && !run->json)
        tell_progress(run);
    return true;
}

static bool worker_ended_well(struct worker *worker)
{
    int status = 0;

    close(worker->fd);
    worker->fd = -1;
    return waitpid(worker->pid, &status, 0) == worker->pid && WIFEXITED(status) &&
           WEXITSTATUS(status) == 0;
}

static void workers_stop(struct run *run)
{
    for (unsigned i = 0; i < run->workers; i++) {
        if (run->all[i].fd < 0)
            continue;
        kill(run->all[i].pid, SIGKILL);
        (void)worker_ended_well(&run->all[i]);
    }
}

static void coverage_share(struct run *run)
{
    void *shared = mmap(NULL, run->workers * sizeof(*run->coverage), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (shared == MAP_FAILED)
        abort();
    run->coverage = shared;
}

static int tell_coverage(const struct run *run)
{
    static struct coverage all;

    for (unsigned i = 0; i < run->workers; i++)
        coverage_add(&all, &run->coverage[i]);
    if (run->json)
        coverage_print_json(&all, stdout);
    else
        coverage_print(&all, stdout);
    unsigned empty = coverage_print_empty(&all, run->json ? stderr : stdout);
    fprintf(run->json ? stderr : stdout, "%u cells that can be visited are empty\n", empty);
    if (run->covers_all && run->done * STEER_VISITS < COVER_ROUNDS_MIN * steer_round()) {
        fprintf(stderr, "too few seeds to expect every cell: %" PRIu64 "\n", run->done);
        return EXIT_SUCCESS;
    }
    return run->covers_all && empty > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int run_many(struct run *run, bool shrinks)
{
    unsigned left = run->workers;

    run->histories = mmap(NULL, run->workers * sizeof(struct history), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (run->histories == MAP_FAILED)
        abort();
    state_load(run);
    if (run->wants_coverage)
        coverage_share(run);
    run->began = time(NULL);
    workers_start(run);
    while (left > 0) {
        struct pollfd fds[WORKERS_MAX];
        for (unsigned i = 0; i < run->workers; i++)
            fds[i] = (struct pollfd){.fd = run->all[i].fd, .events = POLLIN};
        if (poll(fds, run->workers, -1) < 0)
            continue;
        for (unsigned i = 0; i < run->workers; i++) {
            struct worker *worker = &run->all[i];
            if (fds[i].revents == 0 || worker_read(run, worker))
                continue;
            left--;
            if (worker_ended_well(worker))
                continue;
            workers_stop(run);
            state_save(run);
            report(&run->histories[i], shrinks);
            return EXIT_FAILURE;
        }
    }
    if (!run->hashes && !run->json)
        tell_progress(run);
    return run->coverage != NULL ? tell_coverage(run) : EXIT_SUCCESS;
}

/* --- the command line --- */

struct options {
    struct run run;
    const char *scenario, *history_path;
    uint64_t seed;
    bool many, one, trace, print, no_shrink;
};

static int usage_error(const char *what)
{
    fprintf(stderr, "blockstep-sim: %s\nTry 'blockstep-sim --help'.\n", what);
    return 2;
}

static int take_seeds(struct options *options, const char *text)
{
    char *end;

    options->run.first = strtoull(text, &end, 0);
    if (strncmp(end, "..", 2) != 0)
        return usage_error("--seeds wants A..B");
    options->run.last = strtoull(end + 2, &end, 0);
    options->many = true;
    return *end == '\0' && options->run.first <= options->run.last
               ? -1
               : usage_error("--seeds wants A..B");
}

static int take_minutes(struct options *options, const char *text)
{
    double minutes = atof(text);

    if (minutes <= 0)
        return usage_error("--minutes wants a number above 0");
    if (getrandom(&options->run.first, sizeof(options->run.first), 0) < 0)
        abort();
    options->run.first >>= 24;
    options->run.last = UINT64_MAX - WORKERS_MAX;
    options->run.until = time(NULL) + (time_t)(minutes * 60);
    options->many = true;
    printf("seeds from %" PRIu64 "\n", options->run.first);
    return -1;
}

static int take(struct options *options, int option)
{
    switch (option) {
    case 's':
        options->seed = strtoull(optarg, NULL, 0);
        options->one = true;
        return -1;
    case 'r':
        return take_seeds(options, optarg);
    case 'm':
        return take_minutes(options, optarg);
    case 'y':
        options->run.systematic = (unsigned)atoi(optarg);
        if (!options->many)
            options->run.last = UINT64_MAX - WORKERS_MAX;
        options->many = true;
        return options->run.systematic > 0 ? -1 : usage_error("--systematic wants a number");
    case 'n':
        options->scenario = optarg;
        return -1;
    case 'f':
        options->history_path = optarg;
        return -1;
    case 'j':
        options->run.workers = (unsigned)atoi(optarg);
        return options->run.workers >= 1 && options->run.workers <= WORKERS_MAX
                   ? -1
                   : usage_error("--jobs wants 1 to 64");
    case 'S':
        options->run.state_path = optarg;
        return -1;
    case 't':
        options->trace = true;
        return -1;
    case 'p':
        options->print = true;
        return -1;
    case 'H':
        options->run.hashes = true;
        return -1;
    case 'N':
        options->no_shrink = true;
        return -1;
    case 'C':
        options->run.wants_coverage = true;
        options->run.json = optarg != NULL;
        return optarg == NULL || strcmp(optarg, "json") == 0
                   ? -1
                   : usage_error("--coverage takes 'json' or nothing");
    case 'A':
        options->run.wants_coverage = options->run.covers_all = true;
        return -1;
    case 'i':
        print_invariants();
        return EXIT_SUCCESS;
    case 'h':
        print_help();
        return EXIT_SUCCESS;
    default:
        return usage_error("that is no option");
    }
}

static int get_history(const struct options *options, struct history *history)
{
    if (options->history_path != NULL)
        return history_load(history, options->history_path) ? 0
                                                            : usage_error("the file is no history");
    if (options->scenario != NULL)
        return history_scenario(history, options->scenario, options->seed)
                   ? 0
                   : usage_error("there is no such scenario");
    if (!options->one)
        return usage_error("nothing to do: give --seed, --seeds, --minutes, --scenario or "
                           "--history");
    history_from_seed(history, options->seed);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"seed", required_argument, NULL, 's'},
        {"seeds", required_argument, NULL, 'r'},
        {"minutes", required_argument, NULL, 'm'},
        {"scenario", required_argument, NULL, 'n'},
        {"history", required_argument, NULL, 'f'},
        {"jobs", required_argument, NULL, 'j'},
        {"state", required_argument, NULL, 'S'},
        {"systematic", required_argument, NULL, 'y'},
        {"trace", no_argument, NULL, 't'},
        {"print", no_argument, NULL, 'p'},
        {"hashes", no_argument, NULL, 'H'},
        {"no-shrink", no_argument, NULL, 'N'},
        {"coverage", optional_argument, NULL, 'C'},
        {"covers-all", no_argument, NULL, 'A'},
        {"invariants", no_argument, NULL, 'i'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    static struct history history;
    struct options options = {.run.workers = 1, .seed = 1};
    int option, code;

    while ((option = getopt_long(argc, argv, "j:h", names, NULL)) != -1) {
        code = take(&options, option);
        if (code >= 0)
            return code;
    }
    if (options.many)
        return run_many(&options.run, !options.no_shrink);
    code = get_history(&options, &history);
    if (code != 0)
        return code;
    if (options.print) {
        history_print(&history, stdout);
        return EXIT_SUCCESS;
    }
    return run_one(&history, options.trace, !options.no_shrink);
}
