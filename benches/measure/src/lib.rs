//! What the measurements of Handbell share: the limits of the machine, interleaved rounds, the host's facts.
//!
//! Used by `handbell bench`, the benches and the comparison with peers, so that all of them mean the same by a
//! limit, a ratio and a pinned thread. Knows nothing of Handbell itself.
//!
//! A program that measures limits calls [`serve_if_partner`] in the first line of its `main`: the other side of
//! each limit is a second process of the same program.

mod figures;
mod host;
mod limits;
mod partner;
mod processors;
mod region;
mod rounds;

pub use figures::{Figures, Latency, Pace, Ratios, Slice, median, record};
pub use host::{Facts, Meter};
pub use limits::{BestOf, FutexPingPong, Memcpy, PingPong, SAMPLED, SlotRing, WriteRead};
pub use partner::{Gone, Partner, serve_if_partner};
pub use processors::{Place, allowed, apart, pin};
pub use rounds::{Beside, Contest, Measured, Subject};
