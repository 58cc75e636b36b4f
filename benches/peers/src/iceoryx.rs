//! `iceoryx2`: publish-subscribe and request-response, looking without end, as its own benchmarks do.

use handbell_measure::Place;
use iceoryx2::active_request::ActiveRequest;
use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::server::Server;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use crate::link::{ADDRESS, Link, Message, Problem, Running, Task, address, child};

type Ipc = ipc::Service;

/// Everything that it makes has the name of this run, and goes with it.
fn node(root: &str) -> Result<Node<Ipc>, Problem> {
    set_log_level(LogLevel::Error);
    let mut config = Config::default();
    config.global.set_root_path(&Path::new(root.as_bytes())?);
    config.global.prefix = FileName::new(prefix(root).as_bytes())?;
    Ok(NodeBuilder::new().config(&config).create::<Ipc>()?)
}

fn root() -> String {
    let folder = format!("handbell-peers-{}-iceoryx2", std::process::id());
    format!("{}/", std::env::temp_dir().join(folder).display())
}

/// How the names of its shared memory begin.
fn prefix(root: &str) -> String {
    format!("{}_", root.trim_end_matches('/').rsplit('/').next().unwrap_or(root))
}

/// Gone when dropped, behind the node that uses it; so is what that leaves in shared memory, one object a run.
struct Root(String);

impl Drop for Root {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_dir_all(&self.0);
        let prefix = prefix(&self.0);
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Fields are dropped in order: the ports before their node, and that before its folder.
struct PubSub {
    publisher: Publisher<Ipc, Message, ()>,
    subscriber: Subscriber<Ipc, Message, ()>,
    _node: Node<Ipc>,
    _root: Option<Root>,
}

impl PubSub {
    /// For round trips as its own benchmark has it: room for one, the oldest is dropped. For a stream nothing may
    /// be dropped, so there is room for many, and the publisher waits.
    fn open(root: &str, [out, back]: [&str; 2], task: Task, own: bool) -> Result<Self, Problem> {
        let node = node(root)?;
        let service = |name: &str| -> Result<_, Problem> {
            let (room, drops) = if task == Task::Echo { (1, true) } else { (1024, false) };
            let service = node.service_builder(&name.try_into()?).publish_subscribe::<Message>();
            let service = service.max_publishers(1).max_subscribers(1).history_size(0);
            Ok(service.subscriber_max_buffer_size(room).enable_safe_overflow(drops).open_or_create()?)
        };
        let out = service(out)?;
        let publisher = out.publisher_builder();
        let publisher =
            publisher.backpressure_strategy(BackpressureStrategy::RetryUntilDelivered).create()?;
        let subscriber = service(back)?.subscriber_builder().create()?;
        Ok(Self { publisher, subscriber, _node: node, _root: own.then(|| Root(root.to_owned())) })
    }
}

impl Link for PubSub {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        self.publisher.loan_uninit()?.write_payload(*message).send()?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                return Ok(*sample);
            }
            std::hint::spin_loop();
        }
    }
}

/// The name of a service has no meaning but that both sides use it.
const THERE: &str = "there";
const BACK: &str = "back";

/// Two services, one each way.
pub fn pub_sub(name: &str, place: &Place, task: Task) -> Result<Running, Problem> {
    let root = root();
    let link = PubSub::open(&root, [THERE, BACK], task, true)?;
    let process = child(name, place).env(ADDRESS, &root).spawn()?;
    // Until the other side has subscribed, nobody would be sent anything.
    while link.publisher_has_no_subscriber()? {
        std::thread::yield_now();
    }
    Ok(Running::with_process(link, process))
}

impl PubSub {
    fn publisher_has_no_subscriber(&self) -> Result<bool, Problem> {
        let service = self._node.service_builder(&THERE.try_into()?).publish_subscribe::<Message>().open()?;
        let back = self._node.service_builder(&BACK.try_into()?).publish_subscribe::<Message>().open()?;
        Ok(service.dynamic_config().number_of_subscribers() == 0
            || back.dynamic_config().number_of_publishers() == 0)
    }
}

/// In the child.
pub fn join_pub_sub(task: Task) -> Result<impl Link, Problem> {
    PubSub::open(&address()?, [BACK, THERE], task, false)
}

struct Asker {
    client: Client<Ipc, Message, (), Message, ()>,
    pending: Option<PendingResponse<Ipc, Message, (), Message, ()>>,
    _node: Node<Ipc>,
    _root: Root,
}

impl Link for Asker {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        self.pending = Some(self.client.loan_uninit()?.write_payload(*message).send()?);
        Ok(())
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        let pending = self.pending.as_ref().ok_or("nothing was asked")?;
        loop {
            if let Some(response) = pending.receive()? {
                return Ok(*response);
            }
            std::hint::spin_loop();
        }
    }
}

struct Answerer {
    server: Server<Ipc, Message, (), Message, ()>,
    active: Option<ActiveRequest<Ipc, Message, (), Message, ()>>,
    _node: Node<Ipc>,
}

impl Link for Answerer {
    fn send(&mut self, message: &Message) -> Result<(), Problem> {
        let active = self.active.take().ok_or("nothing was asked")?;
        active.loan_uninit()?.write_payload(*message).send()?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Message, Problem> {
        loop {
            if let Some(active) = self.server.receive()? {
                let message = *active;
                self.active = Some(active);
                return Ok(message);
            }
            std::hint::spin_loop();
        }
    }
}

/// One service. Round trips only: it has no one-way messages.
pub fn request_response(name: &str, place: &Place) -> Result<Running, Problem> {
    let root = root();
    let node = node(&root)?;
    let service = node.service_builder(&THERE.try_into()?).request_response::<Message, Message>();
    let service = service.max_servers(1).max_clients(1).open_or_create()?;
    let client = service.client_builder().create()?;
    let process = child(name, place).env(ADDRESS, &root).spawn()?;
    while service.dynamic_config().number_of_servers() == 0 {
        std::thread::yield_now();
    }
    let link = Asker { client, pending: None, _node: node, _root: Root(root) };
    Ok(Running::with_process(link, process))
}

/// In the child.
pub fn join_request_response() -> Result<impl Link, Problem> {
    let node = node(&address()?)?;
    let service = node.service_builder(&THERE.try_into()?).request_response::<Message, Message>();
    let server = service.max_servers(1).max_clients(1).open_or_create()?.server_builder().create()?;
    Ok(Answerer { server, active: None, _node: node })
}
