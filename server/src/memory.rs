//! What the process keeps of memory it no longer needs.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::ffi::c_int;

/// Blocks of at least this many bytes go back to the system when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const GIVEN_BACK_BYTES: c_int = 1 << 20;

/// Has the allocator give back what a first sync needed once and nothing needs again. Best called before there are
/// threads.
///
/// By itself glibc learns from the first large table that is freed to keep all that is smaller, and has a heap for
/// nearly every thread: what comes later lies between things that stay, and the process never gets smaller again.
/// Other allocators are left as they are.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let heaps = std::thread::available_parallelism().map_or(1, |n| c_int::try_from(n.get()).unwrap_or(1));
        let set = [
            set(libc::M_MMAP_THRESHOLD, GIVEN_BACK_BYTES),
            // More cannot be in use at a time.
            set(libc::M_ARENA_MAX, heaps),
        ];
        // Without it all works, in more memory.
        debug_assert_eq!(set, [true; 2]);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no other way to tell glibc once the process runs")]
fn set(what: c_int, value: c_int) -> bool {
    // SAFETY: the call takes two numbers, is allowed at any time, and refuses what it does not know.
    unsafe { libc::mallopt(what, value) == 1 }
}
