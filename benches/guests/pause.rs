//! A container command that sleeps until it is killed and holds next to no memory.
#![no_std]
#![no_main]

use core::arch::asm;
use core::panic::PanicInfo;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    loop {
        // pause(2)
        unsafe {
            asm!("syscall", inlateout("rax") 34_i64 => _, lateout("rcx") _, lateout("r11") _);
        }
    }
}
