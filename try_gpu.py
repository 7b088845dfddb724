import os, sys; os.environ["TRITON_INTERPRET"]="1"; sys.path.insert(0,"/tmp/w/tri39_site")
import torch; torch.set_num_threads(1)
import importlib, time
from tests.passes import problem, composed, Results
from engine.model import Backbone
from kernels.triton import passes
def go(model,n,t,given):
    p=problem(model,n,t,given); exact=composed(p); q=p.to(torch.float32)
    a=time.time()
    im=passes.prepare(q.model.net,q.x)
    *r,kept=passes.run(im,q.theta,q.row,q.labels,q.statistics,True)
    r=Results(*r,*passes.tangent(kept,q.direction))
    print(model,n,t,given, {k:f"{((a.double()-e).abs().max()/e.abs().max()).item():.0e}" for k,a,e in zip(Results._fields,r,exact)}, f"{time.time()-a:.1f}s",flush=True)
for args in eval(sys.argv[1]): go(*args)
