//! Aeron IPC by its C client and media driver: the driver in the parent, one exclusive publication each way.

use std::collections::VecDeque;

use handbell_measure::Place;
use rusteron_client::{
    Aeron, AeronContext, AeronExclusivePublication, AeronHeader, AeronSubscription, Handlers, cformat,
};
use rusteron_media_driver::testing::EmbeddedDriver;

use crate::link::{ADDRESS, Link, Message, Problem, Running, address, child};

/// Terms short enough to be warm after a few thousand messages; with the default of 64 MiB a turn would measure
/// page faults.
const CHANNEL: &std::ffi::CStr = c"aeron:ipc?term-length=256k";
const THERE: i32 = 1001;
const BACK: i32 = 1002;
const FRAGMENTS: usize = 10;
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

struct Ends {
    publication: AeronExclusivePublication,
    subscription: AeronSubscription,
    come: VecDeque<Message>,
    _aeron: Aeron,
    /// Behind its client.
    _driver: Option<EmbeddedDriver>,
}

impl Ends {
    fn open(dir: &str, out: i32, back: i32, driver: Option<EmbeddedDriver>) -> Result<Self, Problem> {
        let context = AeronContext::new()?;
        context.set_dir(&cformat!("{dir}"))?;
        let aeron = Aeron::new(&context)?;
        aeron.start()?;
        let publication = aeron.async_add_exclusive_publication(CHANNEL, out)?.poll_blocking(TIMEOUT)?;
        let subscription = aeron.async_add_subscription(CHANNEL, back, Handlers::NONE, Handlers::NONE)?;
        let subscription = subscription.poll_blocking(TIMEOUT)?;
        Ok(Self { publication, subscription, come: VecDeque::new(), _aeron: aeron, _driver: driver })
    }
}

impl Link for Ends {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        loop {
            match self.publication.offer(message) {
                Ok(_) => return Ok(()),
                Err(error) if error.is_retryable() => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        loop {
            if let Some(message) = self.come.pop_front() {
                return Ok(message);
            }
            let come = &mut self.come;
            let take = |bytes: &[u8], _: AeronHeader| come.extend(Message::try_from(bytes));
            if self.subscription.poll_fn(take, FRAGMENTS)? == 0 {
                std::hint::spin_loop();
            }
        }
    }
}

/// A driver for this turn, with one thread for all that it does.
pub fn start(name: &str, place: &Place) -> Result<Running, Problem> {
    let driver = EmbeddedDriver::launch_with(|context| {
        context.set_threading_mode(
            rusteron_media_driver::bindings::aeron_threading_mode_enum::AERON_THREADING_MODE_SHARED,
        )?;
        Ok(())
    })?;
    let dir = driver.dir().to_owned();
    let process = child(name, place).env(ADDRESS, &dir).spawn()?;
    Ok(Running::with_process(Ends::open(&dir, THERE, BACK, Some(driver))?, process))
}

/// In the child.
pub fn join() -> Result<impl Link, Problem> {
    Ends::open(&address()?, BACK, THERE, None)
}
