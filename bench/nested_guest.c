/* The first process of a Linux that runs a small guest of its own through /dev/kvm, for `nested_guest.py`.
 *
 * The guest has 4 or 5 levels of page tables (the first argument of the kernel's command line after "--"), reads
 * and writes pages of every kind, and halts. Then this says on the console what is true of it, by two witnesses
 * that share nothing with a reader of memory: KVM_TRANSLATE for the guest's addresses, /proc/self/pagemap for the
 * physical pages of the host. Lines: "fact NAME WORDS"; the last one is "fact ready".
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

typedef uint64_t u64;

enum { LOW = 0x200000, TABLES = 0x10000, CODE = 0x8000, PAGE = 0x1000 };

/* Guest-physical memory: small pages, one large page, a page that may only be read, and one near the end. */
static struct { u64 guest, size; int flags, large; char *host; } parts[] = {
	{ 0, LOW, 0, 0, NULL },
	{ 0x40000000, 0x200000, 0, 1, NULL },
	{ 0x80000000, PAGE, KVM_MEM_READONLY, 0, NULL },
	{ 0x7ffffff000, 2 * PAGE, 0, 0, NULL },
};
enum { PARTS = sizeof parts / sizeof *parts };

/* Where the guest maps what: its address, the physical one, the bits of the leaf, and its level. */
static struct { u64 va, pa, bits; int level; } maps[] = {
	{ 0, 0, 0x83, 2 },                              /* 2 MiB: the code and the tables */
	{ 0x00007f1234567000, 0x60000, 0x07, 1 },
	{ 0x00007f1234568000, 0x6a000, 0x8000000000000007, 1 },
	{ 0x00007f1234569000, 0x6b000, 0x05, 1 },
	{ 0x0000400000000000, 0x40000000, 0x87, 2 },
	{ 0xffff900000000000, 0x80000000, 0x8000000000000001, 1 },
	{ 0xffffffff80000000, 0x7ffffff000, 0x103, 1 },
	{ 0xffffffff80001000, 0x8000000000, 0x103, 1 },
	{ 0x00f0123456789000, 0x70000, 0x07, 1 },       /* with five levels only, as the next one */
	{ 0xff11000000000000, 0x71000, 0x03, 1 },
};
enum { MAPS = sizeof maps / sizeof *maps };

static u64 next_table = TABLES + PAGE;

static void stop(const char *what)
{
	printf("fact failed %s\n", what);
	fflush(stdout);
	for (;;)
		pause();
}

static int narrow(u64 va)
{
	return (int64_t)(va << 16) >> 16 == (int64_t)va;
}

/* Map one page in the guest's tables, which lie in the first part. */
static void map(int levels, u64 va, u64 pa, u64 bits, int leaf)
{
	u64 *table = (u64 *)(parts[0].host + TABLES);
	for (int level = levels; level > leaf; level--) {
		u64 *entry = table + (va >> (3 + 9 * level) & 511);
		if (!*entry) {
			*entry = next_table | 7;
			next_table += PAGE;
		}
		table = (u64 *)(parts[0].host + (*entry & ~0xfffULL));
	}
	table[va >> (3 + 9 * leaf) & 511] = pa | bits;
}

static void module(const char *name)
{
	int fd = open(name, O_RDONLY);
	if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
		stop(name);
	close(fd);
}

static void large_pages(void)
{
	int fd = open("/proc/sys/vm/nr_hugepages", O_WRONLY);
	if (fd < 0 || write(fd, "2", 1) != 1)
		stop("nr_hugepages");
	close(fd);
}

static u64 frame_of(void *address)
{
	u64 word = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);
	if (fd < 0 || pread(fd, &word, 8, (u64)address / PAGE * 8) != 8)
		stop("pagemap");
	close(fd);
	return word >> 63 ? (word & ((1ULL << 55) - 1)) * PAGE : 0;
}

/* The guest's code: for every map a read, and a write where it may be written; then HLT. */
static void assemble(int levels)
{
	unsigned char *at = (unsigned char *)parts[0].host + CODE;
	for (int i = 1; i < MAPS; i++) {
		if (levels == 4 && !narrow(maps[i].va))
			continue;
		*at++ = 0x48, *at++ = 0xb8;             /* mov rax, va */
		memcpy(at, &maps[i].va, 8), at += 8;
		memcpy(at, "\x48\x8b\x18", 3), at += 3; /* mov rbx, [rax] */
		if (maps[i].bits & 2)
			memcpy(at, "\x48\x89\x40\x08", 4), at += 4;     /* mov [rax+8], rax */
	}
	*at = 0xf4;
}

static void memory(int vm)
{
	for (int i = 0; i < PARTS; i++) {
		parts[i].host = mmap(NULL, parts[i].size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | (parts[i].large ? MAP_HUGETLB : 0), -1, 0);
		if (parts[i].host == MAP_FAILED)
			stop("mmap");
		for (u64 at = 0; at < parts[i].size; at += PAGE)
			*(u64 *)(parts[i].host + at) = 0x5f00000000000000 | (parts[i].guest + at);
		struct kvm_userspace_memory_region region = {
			.slot = i, .flags = parts[i].flags, .guest_phys_addr = parts[i].guest,
			.memory_size = parts[i].size, .userspace_addr = (u64)parts[i].host,
		};
		if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
			stop("KVM_SET_USER_MEMORY_REGION");
	}
	memset(parts[0].host, 0, TABLES);
	memset(parts[0].host + TABLES, 0, 64 * PAGE);
}

static struct kvm_segment segment(int type, int selector, int code)
{
	return (struct kvm_segment){ .limit = 0xffffffff, .selector = selector, .type = type, .present = 1,
				     .db = !code, .s = 1, .l = code, .g = 1 };
}

static void run(int kvm, int cpu, int levels)
{
	static struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 list[128]; } cpuid = { .head.nent = 128 };
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rsp = CODE };

	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) || ioctl(cpu, KVM_SET_CPUID2, &cpuid))
		stop("KVM_SET_CPUID2");
	if (ioctl(cpu, KVM_GET_SREGS, &sregs))
		stop("KVM_GET_SREGS");
	sregs.cr0 = 0x80010033;
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x20 | (levels == 5) << 12;
	sregs.efer = 0xd00;
	sregs.cs = segment(11, 8, 1);
	sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = segment(3, 16, 0);
	if (ioctl(cpu, KVM_SET_SREGS, &sregs) || ioctl(cpu, KVM_SET_REGS, &regs))
		stop("KVM_SET_SREGS");
	do {
		if (ioctl(cpu, KVM_RUN, 0))
			stop("KVM_RUN");
	} while (shared->exit_reason == KVM_EXIT_INTR);
	ioctl(cpu, KVM_GET_REGS, &regs);
	ioctl(cpu, KVM_GET_SREGS, &sregs);
	printf("fact exit %d rip %llx cr0 %llx cr3 %llx cr4 %llx efer %llx\n", shared->exit_reason, regs.rip,
	       sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer);
	if (shared->exit_reason != KVM_EXIT_HLT)
		stop("the guest did not halt");
}

static void tell(int cpu, int levels)
{
	for (int i = 0; i < MAPS; i++) {
		if (levels == 4 && !narrow(maps[i].va))
			continue;
		struct kvm_translation found = { .linear_address = maps[i].va };
		if (ioctl(cpu, KVM_TRANSLATE, &found))
			stop("KVM_TRANSLATE");
		printf("fact translate %llx %llx %d\n", (unsigned long long)maps[i].va,
		       (unsigned long long)found.physical_address, found.valid);
	}
	for (int i = 0; i < PARTS; i++)
		for (u64 at = 0; at < parts[i].size; at += parts[i].large ? 0x10000 : PAGE)
			printf("fact page %llx %llx %llx\n", (unsigned long long)(parts[i].guest + at),
			       (unsigned long long)frame_of(parts[i].host + at),
			       (unsigned long long)*(u64 *)(parts[i].host + at));
}

int main(int count, char **words)
{
	int levels = 4;
	for (int i = 1; i < count; i++)
		if (!strcmp(words[i], "five"))
			levels = 5;
	mkdir("/proc", 0755), mkdir("/dev", 0755), mkdir("/sys", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	int console = open("/dev/ttyS0", O_RDWR);
	dup2(console, 1);
	module("/irqbypass.ko");
	module("/kvm.ko");
	module("/kvm-amd.ko");
	int kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		stop("/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		stop("KVM_CREATE_VM");
	large_pages();
	memory(vm);
	for (int i = 0; i < MAPS; i++)
		if (levels == 5 || narrow(maps[i].va))
			map(levels, maps[i].va, maps[i].pa, maps[i].bits, maps[i].level);
	assemble(levels);
	int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (cpu < 0)
		stop("KVM_CREATE_VCPU");
	run(kvm, cpu, levels);
	tell(cpu, levels);
	printf("fact ready\n");
	fflush(stdout);
	for (;;)
		pause();
}
