//! The `RuntimeDefault` seccomp profile: an allow list of system calls.
//!
//! Left out are those that Docker's documentation of its default profile lists as significant and blocked
//! (<https://docs.docker.com/engine/security/seccomp/>); some come back with the capability that guards them
//! in the kernel anyway. Names that the machine's libseccomp does not know are skipped by runc.

use super::types::{Seccomp, SyscallArg, SyscallRule};

/// Calls that any container may make.
const ALWAYS: &str = "
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid
getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom
getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt
get_thread_area gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents io_pgetevents_time64
ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr
_llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret
mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget
msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat
openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev
pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg
sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit
set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat
shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice
stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate
truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork
vmsplice wait4 waitid waitpid write writev process_vm_readv process_vm_writev ptrace
";

/// Calls of single architectures.
#[cfg(target_arch = "x86_64")]
const ARCH: &str = "arch_prctl modify_ldt";
#[cfg(target_arch = "aarch64")]
const ARCH: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCH: &str = "";

/// Calls that come with a capability.
const WITH_CAPABILITY: [(&str, &str); 12] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
         move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount \
         umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages",
    ),
    ("CAP_SYSLOG", "syslog"),
];

/// clone(2) flags that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7E02_0000;

/// personality(2) values that change nothing of consequence: Linux, 32-bit Linux, each with uname 2.6, and the
/// query.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The address family of sockets between virtual machines and their host, which no network namespace confines.
const AF_VSOCK: u64 = 40;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The profile for a container with these capabilities.
pub(super) fn runtime_default(capabilities: &[String]) -> Seccomp {
    let has = |name: &str| capabilities.iter().any(|have| have == name);
    let mut names: Vec<&str> = ALWAYS.split_whitespace().chain(ARCH.split_whitespace()).collect();
    for (capability, calls) in WITH_CAPABILITY {
        if has(capability) {
            names.extend(calls.split_whitespace());
        }
    }
    let argument = |index, value, value_two, op: &str| SyscallArg {
        index,
        value,
        value_two,
        op: op.to_owned(),
    };
    let allow = |names: &[&str], args| rule(names, "SCMP_ACT_ALLOW", None, args);
    let mut syscalls = vec![allow(&names, vec![])];
    syscalls.push(allow(&["socket"], vec![argument(0, AF_VSOCK, 0, "SCMP_CMP_NE")]));
    for value in PERSONALITIES {
        syscalls.push(allow(
            &["personality"],
            vec![argument(0, value, 0, "SCMP_CMP_EQ")],
        ));
    }
    if !has("CAP_SYS_ADMIN") {
        syscalls.push(allow(
            &["clone"],
            vec![argument(0, NAMESPACE_FLAGS, 0, "SCMP_CMP_MASKED_EQ")],
        ));
        // clone3's flags are in memory, which a filter cannot see; this answer makes libraries use clone.
        syscalls.push(rule(&["clone3"], "SCMP_ACT_ERRNO", Some(ENOSYS), vec![]));
    }
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: EPERM,
        architectures: architectures(),
        syscalls,
    }
}

fn rule(names: &[&str], action: &str, errno_ret: Option<u32>, args: Vec<SyscallArg>) -> SyscallRule {
    SyscallRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: action.to_owned(),
        errno_ret,
        args,
    }
}

fn architectures() -> Vec<String> {
    let names: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_comes_with_its_capability_only() {
        let allows = |profile: &Seccomp, call: &str| {
            profile.syscalls.iter().any(|r| {
                r.action == "SCMP_ACT_ALLOW" && r.args.is_empty() && r.names.iter().any(|n| n == call)
            })
        };
        let plain = runtime_default(&["CAP_CHOWN".to_owned()]);
        assert!(allows(&plain, "openat") && !allows(&plain, "mount") && !allows(&plain, "clone"));
        let admin = runtime_default(&["CAP_SYS_ADMIN".to_owned()]);
        assert!(allows(&admin, "mount") && allows(&admin, "clone"));
        for never in [
            "kexec_load",
            "add_key",
            "keyctl",
            "userfaultfd",
            "swapon",
            "nfsservctl",
        ] {
            assert!(!allows(&plain, never) && !allows(&admin, never), "{never}");
        }
    }
}
