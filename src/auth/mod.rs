//! Who may ring the doorbell: secrets, the keys derived from them, tags, counters against replay.
//!
//! Pure: random bytes come in as an argument, and nothing here knows a socket or a clock.
//!
//! ```text
//! secret (32 random bytes) ─┐
//! session id, worker,       ├─ HKDF extract ─ expand ─▶ handshake key of the worker, of the engine
//! incarnation (the salt) ───┘                    └────▶ session key of the worker, of the engine
//!                                                       (the transcript of the handshake goes in)
//! ```
//!
//! Types that hold a secret or a key have neither `Debug` nor `Clone`, live on the heap, so that moving them
//! leaves no copy, and are wiped when they are dropped. Working copies on the stack are wiped as far as safe
//! code can reach them.

mod counter;
mod keys;
mod secret;
mod tag;

pub use counter::Counter;
pub use keys::{Key, Keys, Life, Schedule};
pub use secret::{CREDENTIALS_BYTES, Credentials, SECRET_BYTES, Secret};
pub use tag::Transcript;
