//! The smallest useful container command: says hello and ends. Built without the standard library
//! so that what is measured is the engine and not the program.
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
    let text = b"hello\n";
    unsafe {
        asm!("syscall", inlateout("rax") 1_i64 => _, in("rdi") 1, in("rsi") text.as_ptr(),
            in("rdx") text.len(), lateout("rcx") _, lateout("r11") _);
        asm!("syscall", in("rax") 60, in("rdi") 0, options(noreturn));
    }
}
