//! `sluice up`: the daemon itself.
//!
//! Invariant: the home is locked before anything in it is touched, and the doors open before the site
//! starts, so that a client that comes early waits instead of failing. On the way out running work
//! comes to a safe place first, then the doors close.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use sluice_protocol::api::{ApiError, Failure, Node, Operation, Outcome, Status, Unwatched};
use sluice_web::Token;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::context::Context;
use super::output::clean;
use super::{Ended, Result, log, notify};
use crate::config::Config;
use crate::home::Home;
use crate::memory;
use crate::node::SiteNode;

/// How long work in progress may take to come to a safe place.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Time between two looks whether it has.
const REST_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Run the site, until it is stopped
///
/// Logs to standard error and prints one line when it is ready. SIGTERM and Ctrl-C end it cleanly.
#[derive(Debug, Args)]
pub(super) struct Up {
    /// End when standard input ends: for a program that starts a site and must not leave it behind
    #[arg(long, hide = true)]
    until_eof: bool,
}

impl Up {
    pub(super) fn run(self, context: &Context) -> Result<Ended> {
        memory::share_heaps();
        let home = Home::open(&context.home, context.allow_volatile)?;
        let config = Config::load(&home.config_path())?;
        let home = home.locked()?;
        log::begin(&config.log);
        if config.scan.threads > 0 {
            // Fails only when the pool was used before, which nothing has done yet.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(config.scan.threads as usize).build_global();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| ApiError::plain(Failure::Error, format!("threads cannot be started: {e}")))?;
        let ended = runtime.block_on(self.serve(context, home, config));
        // Blocking work that did not come to an end is left to the process's end.
        runtime.shutdown_background();
        ended.map(|()| Ended::Good)
    }

    async fn serve(&self, context: &Context, home: Home, config: Config) -> Result<()> {
        let mut ends = Ends::new(self.until_eof)?;
        let socket = UnixListener::from_std(home.bind_socket()?).map_err(|e| no_door("the socket", &e))?;
        let api = open_api(&config).await?;
        let node = tokio::select! {
            node = SiteNode::start(home.clone(), config) => node,
            () = ends.next() => Err(ApiError::plain(Failure::Incomplete, "the site was stopped before it was ready")),
        };
        let node = match node {
            Ok(node) => node,
            Err(error) => {
                home.remove_socket();
                return Err(error);
            }
        };
        let doors = Doors::open(&home, &node, socket, api)?;
        tell_ready(context, &node).await?;
        tokio::select! {
            () = ends.next() => tracing::info!("told to stop"),
            () = node.stop_asked() => tracing::info!("asked to stop"),
        }
        notify::stopping();
        let stop = async {
            node.stop().await;
            if tokio::time::timeout(STOP_PATIENCE, at_rest(&node)).await.is_err() {
                tracing::warn!("work in progress was cut off; it goes on at the next start");
            }
            doors.close().await;
        };
        tokio::select! {
            () = stop => tracing::info!("stopped"),
            () = ends.next() => tracing::warn!("told to stop again: ending at once"),
        }
        home.remove_socket();
        Ok(())
    }
}

/// Resolves when nothing is going on any more.
async fn at_rest(node: &Arc<SiteNode>) {
    // A status that cannot be given any more says that nothing can go on either.
    while let Ok(Outcome::Status(status)) = node.call(Operation::Status, Arc::new(Unwatched)).await
        && !status.jobs.is_empty()
    {
        tokio::time::sleep(REST_LOOK_EVERY).await;
    }
}

/// What can end a site from outside.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
    stdin: Option<tokio::io::Stdin>,
}

impl Ends {
    fn new(until_eof: bool) -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(|e| ApiError::plain(Failure::Error, format!("signals cannot be taken: {e}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            stdin: until_eof.then(tokio::io::stdin),
        })
    }

    /// The next reason to end.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = eof(&mut self.stdin) => self.stdin = None,
        }
    }
}

/// Resolves when standard input ends; never without one.
async fn eof(stdin: &mut Option<tokio::io::Stdin>) {
    let Some(stdin) = stdin else { return std::future::pending().await };
    let mut ignored = [0; 64];
    while matches!(stdin.read(&mut ignored).await, Ok(1..)) {}
}

fn no_door(what: &str, cause: &std::io::Error) -> ApiError {
    ApiError::plain(Failure::Error, format!("{what} cannot be opened: {cause}"))
}

/// The listener of the API on loopback, if the settings want one.
async fn open_api(config: &Config) -> Result<Option<TcpListener>> {
    if !config.api.enabled {
        return Ok(None);
    }
    let port = config.api.port;
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Err(ApiError::new(
            Failure::Error,
            format!("TCP port {port} of the API is taken by another program"),
            "set `api.port` in config.toml or SLUICE__API__PORT (0 takes any free port), or `api.enabled = false`",
        )),
        Err(e) => Err(no_door(&format!("TCP port {port} of the API"), &e)),
    }
}

/// The open doors of a running site.
struct Doors {
    stop: watch::Sender<bool>,
    serving: JoinSet<()>,
}

impl Doors {
    fn open(home: &Home, node: &Arc<SiteNode>, socket: UnixListener, api: Option<TcpListener>) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut serving = JoinSet::new();
        serving.spawn(sluice_web::serve_unix(socket, node.clone(), told(stopped.clone())));
        if let Some(api) = api {
            let address = api.local_addr().map_err(|e| no_door("the API", &e))?;
            let token = Token::new(&home.token()?).expect("a checked token is 64 digits long");
            node.set_api_url(Some(format!("http://{address}")));
            let served = sluice_web::serve_tcp(api, node.clone(), token, told(stopped));
            serving.spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(%error, "the API on loopback is closed");
                }
            });
        }
        Ok(Self { stop, serving })
    }

    async fn close(mut self) {
        self.stop.send_replace(true);
        while self.serving.join_next().await.is_some() {}
    }
}

async fn told(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which says the same.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// One line for people, or the status as JSON; and a word to the service manager.
async fn tell_ready(context: &Context, node: &Arc<SiteNode>) -> Result<()> {
    let Outcome::Status(status) = node.call(Operation::Status, Arc::new(Unwatched)).await? else {
        return Err(ApiError::plain(Failure::Error, "the site answered something else than its status"));
    };
    let line = ready_line(&status);
    notify::ready(&line);
    let value = serde_json::to_value(&status).map_err(|e| ApiError::plain(Failure::Error, e.to_string()))?;
    if context.json || !context.quiet {
        context.print_value(&value, || format!("{line}\n"));
    }
    Ok(())
}

fn ready_line(status: &Status) -> String {
    clean(&format!(
        "ready: site {} ({}), peers at {}, API {}",
        status.name,
        status.site.short(),
        if status.listening.is_empty() { "no address".into() } else { status.listening.join(", ") },
        status.api.as_deref().unwrap_or("closed"),
    ))
}
