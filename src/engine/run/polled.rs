//! A run without a thread to wait in.

use std::task::{Context, Poll};

use super::super::pending::CallError;
use super::super::reply::Reply;
use super::super::room::RoomPlace;
use super::super::shared::Lane;
use super::{Flight, Run};

impl<I: Iterator> Run<I>
where
    I::Item: AsRef<[u8]>,
{
    /// The next item if it has come, as from [`Iterator::next`]; if not, the context's waker is woken once it has,
    /// or once there is room for the next input. Only the latest waker is. Never waits; but the inputs' iterator and
    /// the key are called in it.
    ///
    /// Where inputs come by themselves (see [`ask_again`](crate::RunBuilder::ask_again)), `None` says that there is
    /// none for now, and nothing wakes when there is: poll again then.
    ///
    /// A stream of any kind is made of it in one line:
    ///
    /// ```
    /// # use std::task::{Context, Poll};
    /// # use handbell::{CallError, Reply, Run};
    /// # trait Stream { type Item; fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::Item>>; }
    /// struct Outcomes<I: Iterator>(Run<I>);
    ///
    /// // As the trait `Stream` of the crate `futures-core`; its `self` is a `Pin<&mut Self>`. With the crate `futures`:
    /// // `stream::poll_fn(move |cx| run.poll_next(cx))`.
    /// impl<I: Iterator<Item: AsRef<[u8]>>> Stream for Outcomes<I> {
    ///     type Item = (u64, Result<Reply, CallError>);
    ///     fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
    ///         self.0.poll_next(cx)
    ///     }
    /// }
    /// ```
    ///
    /// And one item is awaited by `std::future::poll_fn(|cx| run.poll_next(cx)).await`.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Result<Reply, CallError>)>> {
        self.fill(false);
        if self.lacks_room() {
            self.begin_waiting_for_room(context);
            self.fill(false);
            if self.lacks_room() {
                return Poll::Pending;
            }
        }
        // What goes through the run's other lanes must come on, too. A node is not run here: that may take long.
        for lane in &self.lanes {
            let lane = &self.shared.lanes[usize::from(*lane)];
            if let Lane::Worker(_) = lane {
                self.shared.look_at(lane);
            }
        }
        if let Some(Flight::Pending(pending)) = self.flights.front_mut()
            && !pending.has_ended_or_wakes(context.waker())
        {
            return Poll::Pending;
        }
        Poll::Ready(self.take_oldest())
    }

    /// Whether there is an input to be sent, and nothing in flight whose end would wake for it.
    fn lacks_room(&self) -> bool {
        !self.is_over && self.flights.is_empty() && self.put_aside.is_some()
    }

    /// Leaves the waker where room is announced. What the next input waits for is counted from now on.
    fn begin_waiting_for_room(&mut self, context: &Context<'_>) {
        let deadline = self.manner.deadline;
        let shared = &self.shared;
        let (place, deadline_ns) =
            self.room.get_or_insert_with(|| (RoomPlace::new(shared), shared.resolve(deadline)));
        place.leave_waker(context.waker(), *deadline_ns);
    }
}
