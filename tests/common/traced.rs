//! What a program tells as `tracing` events of target `handbell`.

use std::sync::{Arc, Mutex};

/// Keeps what is told to `handbell`.
struct Recorder {
    told: Traced,
    then: fn(&str),
}

/// Events with their fields, in the order in which they were told.
pub type Traced = Arc<Mutex<Vec<String>>>;

struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl tracing::Subscriber for Recorder {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "handbell"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.told.lock().unwrap().push(fields.0.clone());
        (self.then)(&fields.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Records from now on. Once in a program.
pub fn record() -> Traced {
    record_and(|_| ())
}

/// The same, and does this with each event.
pub fn record_and(then: fn(&str)) -> Traced {
    let told = Traced::default();
    let recorder = Recorder { told: Arc::clone(&told), then };
    tracing::subscriber::set_global_default(recorder).expect("the only one");
    told
}
