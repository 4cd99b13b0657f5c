/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Randomness from the seed, and what has happened: as a digest for machines, in words for people. */
#include "loop/sim_internal.h"

#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

uint64_t sim_mix(uint64_t bits)
{
    bits = (bits ^ (bits >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ (bits >> 27)) * UINT64_C(0x94d049bb133111eb);
    return bits ^ (bits >> 31);
}

uint64_t sim_random_from(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    return sim_mix(*state);
}

void sim_trace(struct sim *sim, enum sim_kind kind, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t hash = sim->hash;

    hash = sim_mix(hash ^ (sim->now_ns + kind));
    hash = sim_mix(hash ^ a);
    hash = sim_mix(hash ^ b);
    sim->hash = sim_mix(hash ^ c);
    TRACE("sim.event", "%llu ns: kind %d: %llu %llu %llu", (unsigned long long)sim->now_ns,
          (int)kind, (unsigned long long)a, (unsigned long long)b, (unsigned long long)c);
}

void sim_set_trace(struct sim *sim, sim_line_sink *sink, void *arg)
{
    sim->sink = sink;
    sim->sink_arg = arg;
}

static void sim_line_send(struct sim *sim, const struct sim_host *host, const struct sim_loop *loop,
                          const char *text)
{
    char line[SIM_LINE_BYTES], who[SIM_HOST_NAME_BYTES + 24] = "world";

    if (loop != NULL)
        snprintf(who, sizeof(who), "%s/%llu", host->name, (unsigned long long)loop->index);
    else if (host != NULL)
        snprintf(who, sizeof(who), "%s", host->name);
    int length = snprintf(line, sizeof(line),
                          "%12.6f %s: ", (double)sim->now_ns / (double)NS_PER_MS, who);
    snprintf(line + length, sizeof(line) - (size_t)length, "%s", text);
    sim->sink(sim->sink_arg, line);
}

void sim_tell_line(struct sim *sim, const struct sim_host *host, const struct sim_loop *loop,
                   const char *fmt, ...)
{
    char text[SIM_LINE_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    sim_line_send(sim, host, loop, text);
}

void sim_note(struct sim *sim, const char *fmt, ...)
{
    char text[SIM_LINE_BYTES];
    uint64_t hash = 0;
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    for (const char *at = text; *at != '\0'; at++)
        hash = sim_mix(hash ^ (uint8_t)*at);
    sim_trace(sim, SIM_KIND_NOTE, hash, 0, 0);
    if (sim->sink != NULL)
        sim_line_send(sim, NULL, NULL, text);
}
