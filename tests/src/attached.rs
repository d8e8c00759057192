//! Child processes that end with the test process, however that one ends.
//!
//! The kernel is asked to signal a child when its parent *thread* ends (`setpriv --pdeathsig`), and a test's thread may
//! end long before the process. So one thread that never ends starts all of them.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

/// Who a program runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// Whoever runs the tests.
    Me,
    /// `postgres` if we are root (the server refuses root), else whoever runs the tests.
    Postgres,
}

/// The user of [`As::Postgres`], if it is another one than ours: uid and gid.
pub fn postgres_ids() -> Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user =
        User::from_name("postgres")?.context("we are root, and there is no user postgres to run the server as")?;
    Ok(Some((user.uid.as_raw(), user.gid.as_raw())))
}

/// A command that runs `program` as `who`, in `folder`, and gets `signal` when the test process ends.
pub fn command(program: impl AsRef<OsStr>, who: As, signal: &str, folder: &Path) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]);
    if let (As::Postgres, Some((uid, gid))) = (who, postgres_ids()?) {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--init-groups".into()]);
    }
    command.arg("--").arg(program).current_dir(folder);
    Ok(command)
}

type Order = (Command, SyncSender<io::Result<Child>>);

fn spawn(command: Command) -> Result<Child> {
    static NURSERY: OnceLock<std::sync::mpsc::Sender<Order>> = OnceLock::new();
    let nursery = NURSERY.get_or_init(|| {
        let (orders, inbox): (_, Receiver<Order>) = channel();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // Nobody waits for the reply any more: the child has no owner either, and ends with us.
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let name = format!("{command:?}");
    let (reply, answer) = sync_channel(1);
    nursery.send((command, reply)).ok().context("the thread that starts processes is gone")?;
    answer.recv()?.with_context(|| format!("start {name}"))
}

/// A process of ours; killed when dropped.
#[derive(Debug)]
pub struct Attached {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Attached {
    /// Starts what [`command`] described.
    pub fn start(command: Command) -> Result<Attached> {
        Ok(Attached { child: spawn(command)?, ended: None })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            kill(Pid::from_raw(self.pid() as i32), signal)?;
        }
        Ok(())
    }

    /// Waits for its end, blocking the thread; for servers, which end quickly.
    pub fn wait_blocking(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("process {} has not ended within {limit:?}", self.pid());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("process {} has not ended within {limit:?}", self.pid());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// `kill -9`, and waits for the end.
    pub fn kill9(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // A process that cannot be killed has ended already.
        let _ = self.kill9();
    }
}
