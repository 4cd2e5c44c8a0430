/* libnvidia-ml.so.1 as the tests want it: answers as a device would, errors included.
 *
 * FAKE_NVML_GPUS sets the number of GPUs at the start, fake_set the rest while it runs. Structures
 * and numbers are those of NVML's ABI. There is no nvmlDeviceGetCurrentClocksEventReasons, as in
 * drivers before 535. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, LOST = 15 };
enum { GPUS = 4 }; /* the last one is a MIG slice */
enum { /* what fake_set changes, what fake_calls counts; the order is fake_nvml.py's */
  COUNT, INIT, IS_LOST, ENERGY, POWER, INSTANT, PCIE, NVLINK, STATE,
  ENERGY_MJ, POWER_MW, DELAY_US, HANG, OTHER_NAME, PROCESS, KINDS
};

static volatile int64_t setting[KINDS][GPUS];
static volatile int64_t calls[KINDS];
static struct timespec begun;

void fake_set(int kind, int gpu, int64_t value) { setting[kind][gpu] = value; }
int64_t fake_calls(int kind) { return calls[kind]; }

void fake_reset(int gpus) {
  memset((void *)setting, 0, sizeof setting);
  memset((void *)calls, 0, sizeof calls);
  for (int gpu = 0; gpu < GPUS; gpu++) {
    setting[ENERGY_MJ][gpu] = -1; /* counted by the time that passes */
    setting[POWER_MW][gpu] = 200000 + 100000 * gpu;
  }
  setting[COUNT][0] = gpus;
  clock_gettime(CLOCK_MONOTONIC, &begun);
}

__attribute__((constructor)) static void loaded(void) {
  const char *gpus = getenv("FAKE_NVML_GPUS");
  fake_reset(gpus ? atoi(gpus) : 1);
}

static int index_of(void *device) { return (int)(intptr_t)device - 1; }

/* What every query does first. */
static int ask(void *device, int kind) {
  int gpu = index_of(device);
  __sync_fetch_and_add(&calls[kind], 1);
  while (setting[HANG][gpu]) usleep(1000);
  if (setting[DELAY_US][gpu]) usleep(setting[DELAY_US][gpu]);
  if (setting[IS_LOST][gpu]) return (int)setting[IS_LOST][gpu];
  if (gpu == GPUS - 1 && kind != STATE) return NOT_SUPPORTED;
  return (int)setting[kind][gpu];
}

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  calls[INIT]++;
  return (int)setting[INIT][0];
}
int nvmlShutdown(void) { calls[INIT]--; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)setting[COUNT][0]; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  if (index >= setting[COUNT][0]) return INVALID_ARGUMENT;
  *device = (void *)(intptr_t)(index + 1);
  return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (strncmp(uuid, "MIG-7", 5)) return NOT_FOUND;
  *device = (void *)(intptr_t)GPUS;
  return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
  int gpu = index_of(device);
  snprintf(text, length, gpu == GPUS - 1 ? "MIG-7%d" : "GPU-%dab0-%d", gpu, gpu);
  return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *text, unsigned length) {
  snprintf(text, length, setting[OTHER_NAME][index_of(device)] ? "Other" : "Fake");
  return SUCCESS;
}

typedef struct { uint32_t pid; unsigned long long memory; uint32_t slice, part; } Process;

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
  int64_t pid = setting[PROCESS][index_of(device)];
  unsigned room = *count;
  *count = pid != 0;
  if (!pid) return SUCCESS;
  if (!room) return TOO_SMALL;
  processes[0] = (Process){(uint32_t)pid, 1 << 20, 0xFFFFFFFFu, 0xFFFFFFFFu};
  return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
  int gpu = index_of(device), code = ask(device, ENERGY);
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  double seconds = now.tv_sec - begun.tv_sec + 1e-9 * (now.tv_nsec - begun.tv_nsec);
  int64_t fixed = setting[ENERGY_MJ][gpu];
  *mj = fixed >= 0 ? (uint64_t)fixed : (uint64_t)(setting[POWER_MW][gpu] * seconds);
  return code;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) {
  *mw = (unsigned)setting[POWER_MW][index_of(device)];
  return ask(device, POWER);
}

typedef struct {
  uint32_t field, scope;
  int64_t timestamp, latency;
  uint32_t type, code;
  union { uint32_t small; unsigned long long large; } value;
} Field;

int nvmlDeviceGetFieldValues(void *device, int count, Field *fields) {
  for (int i = 0; i < count; i++) {
    int instant = fields[i].field == 186, link = fields[i].field == 138 || fields[i].field == 139;
    int code = ask(device, instant ? INSTANT : link ? NVLINK : PCIE);
    if (code == LOST) return code;
    if (link && fields[i].scope != 0xFFFFFFFFu) code = INVALID_ARGUMENT;
    fields[i].code = (uint32_t)code;
    memset(&fields[i].value, 0xEE, sizeof fields[i].value); /* rubbish unless it is a success */
    fields[i].type = instant ? 1 : 3;
    if (code) continue;
    if (instant) fields[i].value.small = (uint32_t)setting[POWER_MW][index_of(device)] + 1000;
    else fields[i].value.large = link ? 3 : 5000000000ull;
  }
  return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) {
  rates[0] = 87;
  rates[1] = 20;
  return ask(device, STATE);
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
  memory[0] = 80ull << 30;
  memory[1] = 50ull << 30;
  memory[2] = 30ull << 30;
  return ask(device, STATE);
}
int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) {
  *mhz = clock == 1 ? 1980 : 2619; /* SM, memory */
  return ask(device, STATE);
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
  *celsius = sensor == 0 ? 61 : 0;
  return ask(device, STATE);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits) {
  *bits = 4;
  return ask(device, STATE);
}
